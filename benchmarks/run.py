"""Benchmarks: each figure with its baseline, both measured in the same run."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.figures import Figure
from streetvision.contracts.errors import unknown_name
from streetvision.contracts.progress import Progress

SECTIONS = (
    "calibration",
    "data",
    "gpu",
    "growth",
    "inference",
    "photos",
    "pipeline",
    "reward",
    "startup",
    "statistics",
    "training",
    "views",
)
"""Each is measured by `bench_SECTION` of the module of that name."""


def run_benchmarks(section: str, progress: Progress, page: Path | None = None) -> list[Figure]:
    """The figures of a section of SECTIONS, also written into `page` if one is given.

    Raises ConfigError for an unknown section, or a page without a place for it.
    """
    if section not in SECTIONS:
        raise unknown_name("benchmark section", section, SECTIONS)
    module = import_module(f"benchmarks.bench_{section}")
    measure: Callable[[Progress], list[Figure]] = getattr(module, f"bench_{section}")
    if page is None:
        return measure(progress)
    from benchmarks.bench_page import check_place, write_figures  # loads torch

    check_place(page, section)
    figures = measure(progress)
    write_figures(page, section, figures)
    return figures

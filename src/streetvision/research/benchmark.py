"""Benchmarks: each figure beside the peer or the floor that it is judged against, both measured in the same run."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from streetvision.contracts.errors import unknown_name
from streetvision.contracts.progress import Progress
from streetvision.research.figures import Figure

SECTIONS: Mapping[str, str] = {
    "calibration": "calibration and risk control, against scikit-learn, netcal and MAPIE",
    "data": "the training loader, against ImageFolder and against its own decoder; views, against torchvision's steps",
    "gpu": "steps of a ViT-L/16 on a CUDA device, against plain fp32 and against the device's own pace",
    "growth": "how cost grows with images, views, thresholds and resamples, against linear growth",
    "inference": "from image files to answers in every runtime, against transformers' pipeline",
    "pipeline": "from images to an evaluated bundle, against a loose script",
    "reward": "the subnet's reward of many streams, against drawing these streams",
    "startup": "the help text, against an interpreter that starts and ends",
    "statistics": "thresholds and intervals, against scikit-learn and SciPy",
    "training": "a head on features, adapters against a loop by hand, a contrast against lightly's",
    "views": "many views of an image in one call, against a loop over the views",
}
"""Section -> what it measures; `bench_SECTION` of the module of that name does."""


def run_benchmarks(section: str, progress: Progress, page: Path | None = None) -> list[Figure]:
    """The figures of a section of SECTIONS, which are also written into `page` where one is given.

    Raises ConfigError when there is no section of that name, or no place for it in the page.
    """
    if section not in SECTIONS:
        raise unknown_name("benchmark section", section, SECTIONS)
    module = import_module(f"streetvision.research.bench_{section}")
    measure: Callable[[Progress], list[Figure]] = getattr(module, f"bench_{section}")
    if page is None:
        return measure(progress)
    from streetvision.research.bench_page import check_place, write_figures  # loads torch

    check_place(page, section)
    figures = measure(progress)
    write_figures(page, section, figures)
    return figures

"""Figures of `streetvision dev bench` as a table of a page, with a plot of the costs that grow."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle
from math import isnan
from pathlib import Path

import torch

from benchmarks.figures import Curve, Figure
from streetvision.eval.figures import BLUE, GRAY, ORANGE, new_figure
from streetvision.experiments.doc_tables import split_page, write_table
from streetvision.io.atomic import write_bytes_atomic

COLORS = (BLUE, ORANGE, "#009e73", "#cc79a7", GRAY)


def check_place(page: Path, section: str) -> None:
    """Raise ConfigError, before anything is measured, when `page` has no place for the section."""
    split_page(page, _mark(section))


def write_figures(page: Path, section: str, figures: Sequence[Figure]) -> None:
    """Write the section's table into `page`, and its plot, if there is one, next to it as SECTION.png."""
    lines = [f"{machine()}.", "", "| measure | value | baseline | its value | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.name} | {_number(one.value, one.unit)} | {one.baseline} | {_number(one.baseline_value, one.unit)} "
        f"| {_number(one.ratio)} |"
        for one in figures
    ]
    curves = [one.curve for one in figures if one.curve is not None]
    if curves:
        write_bytes_atomic(page.parent / f"{section}.png", growth_picture(curves))
        lines += ["", f"![{section}]({section}.png)"]
    write_table(page, _mark(section), "\n".join(lines) + "\n")


def growth_picture(curves: Sequence[Curve]) -> bytes:
    """PNG of seconds over sizes, both logarithmic, each curve with its exponent."""
    most = max(curves, key=lambda curve: curve.exponent)
    with new_figure(f"The steepest cost, in {most.of}, grows as N^{most.exponent:.2f}") as (figure, png):
        axes = figure.subplots()
        for curve, color in zip(curves, cycle(COLORS), strict=False):
            label = f"{curve.of}: N^{curve.exponent:.2f}"
            axes.loglog(curve.sizes, curve.seconds, color=color, marker=".", label=label)
        axes.set_xlabel("N")
        axes.set_ylabel("seconds")
        axes.legend()
    return png.getvalue()


def machine() -> str:
    """Date, GPU, processor, threads and torch version."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} cores of {_processor()}, {threads} thread{'s' * (threads > 1)}"
    return f"{datetime.now(UTC).date()}, {gpu}{cores}, torch {torch.__version__}"


def _mark(section: str) -> str:
    return f"bench {section}"


def _processor() -> str:
    """The model name, where the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _number(value: float, unit: str = "") -> str:
    """Three significant digits, never in scientific notation."""
    return "absent" if isnan(value) else f"{float(f'{value:.3g}'):,.10g} {unit}".rstrip()

"""The result of monitoring as one HTML page, readable offline, and what has moved."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.image_file import UndecodableImage
from streetvision.data.quality import ImageQuality
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.figures import BLUE, GREEN, ORANGE, draw_interval, legend_above, new_figure
from streetvision.eval.report.html import environment, inline_image
from streetvision.io.atomic import write_text_atomic
from streetvision.monitoring.history import TESTS
from streetvision.monitoring.monitor import LN10, Monitor

FloatArray = NDArray[np.float64]
LISTED = 8
"""Rows of the table of what moved."""
COLORS = dict(zip(TESTS, (BLUE, ORANGE), strict=True))


@dataclass(frozen=True)
class Movement:
    """The mean of a quality value or of a feature in the recent part of the stream, compared with the reference."""

    name: str
    reference: float
    recent: float
    shift: float
    """Difference in standard deviations of the reference."""


def movements(running: Monitor) -> list[Movement]:
    """Return quality values and features, the one that has moved most first."""
    history, found = running.state.history, []
    recent = history.recent()
    count, total, _ = history.quality[recent].sum(axis=0)
    for index, name in enumerate(ImageQuality._fields):
        values = running.reference.quality[:, index]
        values = values[~np.isnan(values)]
        if len(values) < 2 or not count[index]:
            continue
        mean, now = float(values.mean()), float(total[index] / count[index])
        spread = max(float(values.std()), 1e-3 * max(abs(mean), 1e-6))
        found.append(Movement(name.replace("_", " "), mean, now, (now - mean) / spread))
    units = history.count[recent].sum()
    if units:
        means = history.components[recent, 0].sum(axis=0) / units
        found += [Movement(f"feature {n}", 0.0, float(mean), float(mean)) for n, mean in enumerate(means, start=1)]
    return sorted(found, key=lambda movement: -abs(movement.shift))


def write_report(path: Path, running: Monitor, *, images: Path | None) -> None:
    """Write the page; `images` is the folder of the images, for examples."""
    status = running.status
    page = (
        environment("streetvision.monitoring")
        .get_template("monitor.html.j2")
        .render(
            status=status,
            positive=running.bundle.manifest.class_names[1],
            threshold=running.bundle.manifest.policy.scrc_params.threshold,  # type: ignore[union-attr]
            header=running.reference.header,
            limit=np.log10(len(status.tests) / status.alpha),
            movements=movements(running)[:LISTED],
            martingale_plot=inline_image(_martingale_plot(running), alt="Martingales by image"),
            prevalence_plot=inline_image(_prevalence_plot(running), alt="Mean probability by image"),
            examples=[] if images is None else _examples(running, images),
        )
    )
    write_text_atomic(path, page)


def _positions(running: Monitor) -> FloatArray:
    """Number of units at the end of each window."""
    ends: FloatArray = np.cumsum(running.state.history.count)
    return ends


def _martingale_plot(running: Monitor) -> bytes:
    history, status = running.state.history, running.status
    with new_figure("Evidence against exchangeability") as (figure, png):
        axes = figure.subplots()
        for index, name in enumerate(TESTS):
            if name in status.tests:
                axes.plot(_positions(running), history.martingale[:, index] / LN10, color=COLORS[name], label=name)
        axes.axhline(np.log10(len(status.tests) / status.alpha), color=GREEN, linestyle="--", label="alarm")
        axes.set(xlabel="images that count", ylabel="log10 of the martingale")
        legend_above(axes, 3)
    return png.getvalue()


def _prevalence_plot(running: Monitor) -> bytes:
    history, centres = running.state.history, None
    bins = history.probability.shape[1]
    centres = 1 / (1 + np.exp(-((np.arange(bins) + 0.5) * 24 / bins - 12)))
    mean = history.probability @ centres / np.maximum(history.count, 1)
    square = history.probability @ centres**2 / np.maximum(history.count, 1)
    error = 1.96 * np.sqrt(np.maximum(square - mean**2, 0) / np.maximum(history.count, 1))
    with new_figure("Mean calibrated probability") as (figure, png):
        axes = figure.subplots()
        draw_interval(axes, _positions(running), mean - error, mean + error, "95% interval of the mean")
        axes.plot(_positions(running), mean, color=BLUE)
        axes.set(xlabel="images that count", ylabel="mean probability", ylim=(0, 1))
        legend_above(axes, 2)
    return png.getvalue()


def _examples(running: Monitor, folder: Path) -> list[tuple[Markup, str, float]]:
    shown = []
    for distance, name in running.state.examples:
        for path in (folder / name, folder / Path(name).name, Path(name)):
            try:
                shown.append((inline_image(thumbnail(path, DEFAULT_LIMITS), alt=name), name, distance))
                break
            except UndecodableImage:
                continue
    return shown

"""The result of monitoring as one HTML page, readable offline, and what has moved."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.image_file import UndecodableImage
from streetvision.data.quality import ImageQuality
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.report.html import environment, inline_image
from streetvision.io.atomic import write_text_atomic
from streetvision.monitoring.history import TESTS
from streetvision.monitoring.monitor import LN10, Monitor
from streetvision.monitoring.prevalence import BINS, LOGIT_LIMIT

FloatArray = NDArray[np.float64]
LISTED = 8
"""Rows of the table of what moved."""
WIDTH, HEIGHT = 700.0, 200.0
"""Size of a chart, in units of its SVG."""


@dataclass(frozen=True)
class Chart:
    """Lines as SVG, which needs no library for plots."""

    lines: dict[str, str]
    """Name -> points of an SVG polyline."""
    low: float
    high: float
    last: int
    """Number of images at the right edge."""
    mark: float | None
    """Height of the horizontal line in SVG units; None: there is none."""

    @classmethod
    def draw(
        cls, x: FloatArray, lines: dict[str, FloatArray], low: float, high: float, *, mark: float | None = None
    ) -> "Chart":
        """Scale lines over x to WIDTH and HEIGHT; `mark` is the value of a horizontal line."""
        last = float(x[-1]) if len(x) else 1.0

        def height(value: float) -> float:
            return HEIGHT * (high - value) / (high - low)

        points = {
            name: " ".join(
                f"{WIDTH * at / last:.1f},{height(value):.1f}"
                for at, value in zip(x.tolist(), values.tolist(), strict=True)
            )
            for name, values in lines.items()
        }
        return cls(points, low, high, int(last), None if mark is None else height(mark))


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
            martingale_chart=_martingale_chart(running),
            probability_chart=_probability_chart(running),
            examples=[] if images is None else _examples(running, images),
        )
    )
    write_text_atomic(path, page)


def _positions(running: Monitor) -> FloatArray:
    """Number of units at the end of each window."""
    ends: FloatArray = np.cumsum(running.state.history.count)
    return ends


def _martingale_chart(running: Monitor) -> Chart:
    history, status = running.state.history, running.status
    limit = float(np.log10(len(status.tests) / status.alpha))
    lines = {str(name): history.martingale[:, index] / LN10 for index, name in enumerate(TESTS) if name in status.tests}
    high = max([limit, *(float(values.max(initial=0)) for values in lines.values())])
    low = min([0.0, *(float(values.min(initial=0)) for values in lines.values())])
    return Chart.draw(_positions(running), lines, low, high + 0.5, mark=limit)


def _probability_chart(running: Monitor) -> Chart:
    history = running.state.history
    centers = 1 / (1 + np.exp(-((np.arange(BINS) + 0.5) * (2 * LOGIT_LIMIT / BINS) - LOGIT_LIMIT)))
    mean = history.probability @ centers / np.maximum(history.count, 1)
    return Chart.draw(_positions(running), {"mean probability": mean}, 0.0, 1.0)


def _examples(running: Monitor, folder: Path) -> list[tuple[Markup, str, float]]:
    """Only files in the folder: a client of the server may choose the name of its image."""
    shown, root = [], _absolute(folder)
    for distance, name in running.state.examples:
        candidates = map(_absolute, (folder / name, folder / Path(name).name, Path(name)))
        for path in (path for path in candidates if path.is_relative_to(root)):
            try:
                shown.append((inline_image(thumbnail(path, DEFAULT_LIMITS), alt=name), name, distance))
                break
            except UndecodableImage:
                continue
    return shown


def _absolute(path: Path) -> Path:
    """An absolute path without `..`; links in the folder are followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps `..`)

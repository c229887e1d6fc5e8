"""Pictures that answer one question each, as PNG bytes: the same arrays give the same bytes.

Titles say what is to be seen. The colours are those of Okabe and Ito, which colour-blind people can tell apart.
matplotlib is imported only when a picture is drawn, and never through pyplot.
"""

import io
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.eval.counts import Counts, Cuts, all_cuts, checked, confusion_counts
from streetvision.eval.metrics import area_under_roc, average_precision, ece, fpr, precision, recall
from streetvision.eval.reliability import ReliabilityBins, ece_band, reliability_bins
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import Band
from streetvision.eval.thresholds import decide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

BLUE, ORANGE, GREY, INK, PALE = "#0072b2", "#d55e00", "#80868f", "#22262b", "#dfe3e8"
STYLE: "dict[RcKeyType, Any]" = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}
WIDTH, HEIGHT = 6.0, 4.4
"""Inches: at 600 px on a screen the text is about 15 px high."""
DPI = 200
DRAWN_POINTS = 2000
"""Points of a curve that are drawn; more could not be seen."""
TITLE_LETTERS, SLACK_LETTERS = 54, 8


def roc_curve(labels: ArrayLike, probabilities: ArrayLike, *, threshold: float, positive: str = "class 1") -> bytes:
    """How misses trade against false alarms: labels (N,), probabilities (N,), the threshold marked.

    Raises:
        DataError: unusable arrays, as in `checked`.
    """
    cuts, here = _at(labels, probabilities, threshold)
    found, alarms = float(recall(here)), float(fpr(here))
    with picture(f"Finding {found:.0%} of the {positive} images costs {alarms:.1%} false alarms") as (figure, png):
        axes = figure.add_subplot()
        drawn = cuts.counts(_thinned(cuts))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 4)), label="guessing")
        axes.plot(fpr(drawn), recall(drawn), color=BLUE, label=f"this model, area {float(area_under_roc(cuts)):.3f}")
        _mark_threshold(axes, alarms, found, threshold)
        _unit_square(axes, "share of other images with a false alarm", f"share of {positive} images found")
        axes.legend(loc="lower right")
    return png.getvalue()


def pr_curve(labels: ArrayLike, probabilities: ArrayLike, *, threshold: float, positive: str = "class 1") -> bytes:
    """How much an alarm can be trusted as more is found: labels (N,), probabilities (N,), the threshold marked.

    Raises:
        DataError: unusable arrays, as in `checked`.
    """
    cuts, here = _at(labels, probabilities, threshold)
    found, right = float(recall(here)), float(precision(here))
    with picture(f"{right:.0%} of the alarms are right when {found:.0%} of {positive} is found") as (figure, png):
        axes = figure.add_subplot()
        drawn = cuts.counts(_thinned(cuts))
        called = np.asarray(drawn.tp + drawn.fp) > 0
        axes.axhline(
            float(cuts.positives / here.total), color=GREY, linewidth=1.2, linestyle=(0, (4, 4)), label="guessing"
        )
        axes.plot(
            np.asarray(recall(drawn))[called],
            np.asarray(precision(drawn))[called],
            color=BLUE,
            label=f"this model, area {float(average_precision(cuts)):.3f}",
        )
        _mark_threshold(axes, found, right, threshold)
        _unit_square(axes, f"share of {positive} images found", "share of alarms that are right")
        axes.legend(loc="lower left")
    return png.getvalue()


def confusion_matrix(counts: Counts, *, class_names: tuple[str, str] = ("class 0", "class 1")) -> bytes:
    """How many images of each class were called what, from counts that are numbers."""
    missed = f"{int(counts.fn):,} of {int(counts.positives):,} {class_names[1]} images are missed"
    alarms = f"{int(counts.fp):,} of {int(counts.negatives):,} others raise a false alarm"
    table = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]], dtype=np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with picture(f"At this threshold {missed} and {alarms}") as (figure, png):
        axes = figure.add_subplot()
        for row, column in np.ndindex(2, 2):
            share, right = shares[row, column], row == column
            axes.fill_between(
                [column - 0.48, column + 0.48],
                row - 0.46,
                row + 0.46,
                color=BLUE if right else ORANGE,
                alpha=0.08 + 0.8 * share,
                linewidth=0,
            )
            ink = "white" if share > 0.6 else INK
            axes.text(column, row - 0.05, f"{int(table[row, column]):,}", ha="center", fontsize=22, color=ink)
            axes.text(column, row + 0.24, f"{share:.1%} of the row", ha="center", fontsize=10, color=ink)
        axes.set_xticks([0, 1], [f"called {name}" for name in class_names])
        axes.set_yticks([0, 1], [f"is {name}" for name in class_names], rotation=90, va="center")
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return png.getvalue()


def reliability_diagram(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    before: ArrayLike | None = None,
    positive: str = "class 1",
    name: str = "as served",
) -> bytes:
    """Do the probabilities (N,) come true; `before` (N,) are those without calibration, `name` says which these are.

    The bars are 95 % Wilson intervals, of `groups` (N,) where there are any; below, the number of images in each bin.

    Raises:
        DataError: unusable arrays, as in `checked`.
    """
    truth, p = checked(labels, probabilities)
    error, chance = ece(truth, p), ece_band(p, Resampling(groups))[1]
    verdict = "no more than chance explains" if error <= chance else "more than chance explains"
    with picture(f"Probabilities are off by {error:.1%} on average, {verdict} ({chance:.1%})", HEIGHT + 1.2) as drawn:
        figure, png = drawn
        axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 4)), label="perfect")
        if before is not None:
            raw = reliability_bins(truth, before)
            hollow = axes.scatter(raw.probability, raw.frequency, s=40, facecolors="none", edgecolors=ORANGE)
            hollow.set_label(f"uncalibrated, ECE {ece(truth, before):.3f}")
        bins = reliability_bins(truth, p, groups=groups)
        _draw_bins(axes, bins, f"{name}, ECE {error:.3f}")
        _unit_square(axes, "", f"share that is {positive}")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1.2, handletextpad=0.4)
        histogram.bar(bins.probability, bins.count, width=0.03, color=BLUE)
        histogram.set(xlabel=f"probability of {positive}", ylabel="images")
        histogram.grid(visible=False, axis="x")
    return png.getvalue()


def plot_mcc_curve(
    metrics_or_curve: Mapping[str, Any],
    *,
    threshold: float | None = None,
    band: Band | None = None,
    moves: tuple[float, float] | None = None,
) -> bytes:
    """How much the choice of the threshold matters: MCC over the grid, as PNG bytes.

    Takes what `select_threshold_max_mcc(..., return_curve=True)` gives: its dict of figures, whose exact MCC then
    belongs to `threshold`, or only the `curve` in it. Without a threshold the best point of the grid is marked.
    `band` adds the bootstrap interval of MCC at its thresholds, `moves` the range in which `threshold_interval` finds
    the optimum.
    """
    curve: Mapping[str, NDArray[Any]] = metrics_or_curve.get("curve", metrics_or_curve)
    thresholds, values = curve["thresholds"], curve["mcc"]
    peak = int(np.argmax(values))
    at, best, exact = float(thresholds[peak]), float(values[peak]), threshold is not None
    if threshold is not None:
        at = threshold
        best = float(metrics_or_curve["mcc"] if "curve" in metrics_or_curve else values[thresholds <= threshold][-1])
    with picture(f"MCC is highest, {_with_interval(best, at, band)}, with a threshold of {at:.4g}") as (figure, png):
        axes = figure.add_subplot()
        if moves is not None:
            axes.axvspan(*moves, color=ORANGE, alpha=0.12, linewidth=0, label="where resamples put the optimum")
        if band is not None:
            _draw_band(axes, band)
        axes.plot(thresholds, values, color=BLUE, drawstyle="steps-pre", label=f"grid of {thresholds.size:,}")
        axes.axvline(at, color=ORANGE, linewidth=1.2)
        axes.plot(
            [at], [best], "o", color=ORANGE, markersize=8, label="the exact optimum" if exact else "best of the grid"
        )
        axes.set(xlabel="threshold on the probability", ylabel="MCC", xlim=(-0.01, 1.01))
        axes.legend(loc="lower center")
    return png.getvalue()


def threshold_curve(band: Band, *, threshold: float) -> bytes:
    """What other thresholds would have given, in hindsight; `threshold`, which `band` holds, is the one in use."""
    here, best = float(band.mcc[band.thresholds == threshold][0]), float(band.mcc.max())
    title = f"The threshold {threshold:.4g} gives MCC {here:.3f}; in hindsight the best of all gives {best:.3f}"
    with picture(title) as (figure, png):
        axes = figure.add_subplot()
        _draw_band(axes, band)
        axes.plot(band.thresholds, band.mcc, color=BLUE, label="MCC")
        axes.axvline(threshold, color=ORANGE, linewidth=1.2)
        _mark_threshold(axes, threshold, here, threshold)
        axes.set(xlabel="threshold on the probability", ylabel="MCC", xlim=(-0.01, 1.01))
        axes.legend(loc="lower center")
    return png.getvalue()


@contextmanager
def picture(title: str, height: float = HEIGHT) -> Iterator[tuple["Figure", io.BytesIO]]:
    """A figure to draw on; its PNG is written to the buffer when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure, png = Figure(figsize=(WIDTH, height)), io.BytesIO()
        figure.suptitle(_wrapped(title), x=0.02, ha="left", fontsize=13, fontweight="bold")
        yield figure, png
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})


def _wrapped(title: str) -> str:
    """The title in lines of about the same length, so that no word stands alone on the last one."""
    lines = -(-len(title) // TITLE_LETTERS)
    return textwrap.fill(title, min(TITLE_LETTERS, len(title) // lines + SLACK_LETTERS))


def _at(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> tuple[Cuts, Counts]:
    """Every cut, and the counts at the threshold."""
    return all_cuts(labels, probabilities), confusion_counts(labels, decide(probabilities, threshold))


def _thinned(cuts: Cuts) -> NDArray[np.intp]:
    """Cuts that are drawn: all, or evenly spaced ones with both ends."""
    last = cuts.scores.size
    return np.unique(np.linspace(0, last, min(last + 1, DRAWN_POINTS)).astype(np.intp))


def _mark_threshold(axes: "Axes", x: float, y: float, threshold: float) -> None:
    axes.plot([x], [y], "o", color=ORANGE, markersize=8, zorder=3, label=f"threshold {threshold:.4g}")


def _with_interval(value: float, at: float, band: Band | None) -> str:
    """The value, with its interval where the band holds the threshold `at`."""
    if band is None or not (here := band.thresholds == at).any():
        return f"{value:.3f}"
    return f"{value:.3f} [{band.low[here][0]:.3f}, {band.high[here][0]:.3f}]"


def _draw_band(axes: "Axes", band: Band) -> None:
    label = f"{band.level:.0%} interval of MCC"
    axes.fill_between(band.thresholds, band.low, band.high, color=BLUE, alpha=0.18, linewidth=0, label=label)


def _draw_bins(axes: "Axes", bins: ReliabilityBins, label: str) -> None:
    """Frequencies over probabilities with their intervals; the larger the dot, the more images."""
    ends = np.clip([bins.frequency - bins.low, bins.high - bins.frequency], 0.0, 1.0)
    axes.errorbar(bins.probability, bins.frequency, yerr=ends, fmt="none", ecolor=BLUE, elinewidth=1.2, alpha=0.55)
    sizes = 25 + 125 * bins.count / bins.count.max()
    axes.scatter(bins.probability, bins.frequency, s=sizes, color=BLUE, zorder=3, label=label)


def _unit_square(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

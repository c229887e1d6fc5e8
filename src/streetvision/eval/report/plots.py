"""Plots of an evaluation, as PNG bytes. The title of each plot states its result."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.eval.counts import Counts, FloatArray, ThresholdCounts, confusion_counts, threshold_counts
from streetvision.eval.figures import (
    BLUE,
    DASHED,
    GRAY,
    HEIGHT,
    INK,
    ORANGE,
    draw_interval,
    legend_above,
    mark_threshold,
    new_figure,
)
from streetvision.eval.intervals import level_text
from streetvision.eval.metrics import area_under_roc, average_precision, ece, fpr, precision, recall
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import ece_band, reliability_bins
from streetvision.eval.resampling import DEFAULT_RESAMPLING, Resampling
from streetvision.eval.selective import RiskCoverage
from streetvision.eval.stability import Band
from streetvision.eval.thresholds import decide

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 2000
"""Points of a curve that are drawn; more would not be visible."""
RISK_TITLES = {"fnr": "missed positives", "fpr": "false alarms among negatives", "error": "wrong predictions"}


def roc_curve(predictions: Predictions, *, threshold: float, positive: str = "class 1") -> bytes:
    """The ROC curve, with the threshold marked."""
    curve, counts = _curve_and_counts(predictions, threshold)
    hit_rate, alarm_rate = float(recall(counts)), float(fpr(counts))
    with new_figure(f'{hit_rate:.0%} of the "{positive}" images found, with {alarm_rate:.1%} false alarms') as drawn:
        figure, png = drawn
        axes = figure.add_subplot()
        points = curve.counts(_drawn_positions(curve))
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1.2, linestyle=DASHED, label="random")
        axes.plot(fpr(points), recall(points), color=BLUE, label=f"this model, area {float(area_under_roc(curve)):.3f}")
        mark_threshold(axes, alarm_rate, hit_rate, f"threshold {threshold:.4g}")
        _unit_square(axes, "false alarm rate", f'share of "{positive}" images found (recall)')
        axes.legend(loc="lower right")
    return png.getvalue()


def pr_curve(predictions: Predictions, *, threshold: float, positive: str = "class 1") -> bytes:
    """The precision-recall curve, with the threshold marked."""
    curve, counts = _curve_and_counts(predictions, threshold)
    hit_rate, correct = float(recall(counts)), float(precision(counts))
    title = f'{correct:.0%} of the alarms are correct, with {hit_rate:.0%} of the "{positive}" images found'
    with new_figure(title) as (figure, png):
        axes = figure.add_subplot()
        points = curve.counts(_drawn_positions(curve))
        defined = np.asarray(points.tp + points.fp) > 0  # precision needs a predicted positive
        prevalence = float(curve.positives / counts.total)
        axes.axhline(prevalence, color=GRAY, linewidth=1.2, linestyle=DASHED, label="random")
        axes.plot(
            np.asarray(recall(points))[defined],
            np.asarray(precision(points))[defined],
            color=BLUE,
            label=f"this model, area {float(average_precision(curve)):.3f}",
        )
        mark_threshold(axes, hit_rate, correct, f"threshold {threshold:.4g}")
        _unit_square(axes, f'share of "{positive}" images found (recall)', "share of correct alarms (precision)")
        axes.legend(loc="lower left")
    return png.getvalue()


def confusion_matrix(counts: Counts, *, class_names: tuple[str, str] = ("class 0", "class 1")) -> bytes:
    """The confusion matrix of counts that are numbers."""
    misses = f'{int(counts.fn):,} of {int(counts.positives):,} "{class_names[1]}" images missed'
    alarms = f"{int(counts.fp):,} of {int(counts.negatives):,} others are false alarms"
    table = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]], dtype=np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with new_figure(f"{misses}, {alarms}") as (figure, png):
        axes = figure.add_subplot()
        for row, column in np.ndindex(2, 2):
            share, correct = shares[row, column], row == column
            axes.fill_between(
                [column - 0.48, column + 0.48],
                row - 0.46,
                row + 0.46,
                color=BLUE if correct else ORANGE,
                alpha=0.08 + 0.8 * share,
                linewidth=0,
            )
            ink = "white" if share > 0.6 else INK
            axes.text(column, row - 0.05, f"{int(table[row, column]):,}", ha="center", fontsize=22, color=ink)
            axes.text(column, row + 0.24, f"{share:.1%} of the row", ha="center", fontsize=10, color=ink)
        axes.set_xticks([0, 1], [f'predicted "{name}"' for name in class_names])
        axes.set_yticks([0, 1], [f'labeled "{name}"' for name in class_names], rotation=90, va="center")
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return png.getvalue()


def reliability_diagram(
    predictions: Predictions,
    *,
    before: ArrayLike | None = None,
    positive: str = "class 1",
    name: str = "as served",
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> bytes:
    """Observed frequency against mean probability by bin, with 95 % Wilson intervals, and the images per bin.

    Args:
        predictions: the rows. With groups, the intervals are based on the number of groups.
        before: (N,) the probabilities without calibration, drawn for comparison.
        positive: name of class 1.
        name: name of the probabilities in the legend.
        resampling: settings of the range of a calibrated model in the title.
    """
    error = ece(predictions.labels, predictions.probabilities)
    chance = ece_band(predictions, resampling)[1]
    verdict = "within" if error <= chance else "above"
    title = f"Mean calibration error {error:.1%}, {verdict} the range of a calibrated model (up to {chance:.1%})"
    with new_figure(title, HEIGHT + 1.2) as (figure, png):
        axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1.2, linestyle=DASHED, label="perfect")
        if before is not None:
            raw = reliability_bins(Predictions(predictions.labels, before))
            hollow = axes.scatter(raw.probability, raw.frequency, s=40, facecolors="none", edgecolors=ORANGE)
            hollow.set_label(f"uncalibrated, ECE {ece(predictions.labels, before):.3f}")
        bins = reliability_bins(predictions)
        half_widths = np.clip([bins.frequency - bins.low, bins.high - bins.frequency], 0.0, 1.0)
        axes.errorbar(
            bins.probability, bins.frequency, yerr=half_widths, fmt="none", ecolor=BLUE, elinewidth=1.2, alpha=0.55
        )
        # The area of a dot grows with the images of its bin.
        sizes = 25 + 125 * bins.count / bins.count.max()
        axes.scatter(bins.probability, bins.frequency, s=sizes, color=BLUE, zorder=3, label=f"{name}, ECE {error:.3f}")
        _unit_square(axes, "", f'share of "{positive}" images')
        legend_above(axes)
        histogram.bar(bins.probability, bins.count, width=0.03, color=BLUE)
        histogram.set(xlabel=f'probability of "{positive}"', ylabel="images")
        histogram.locator_params(axis="y", integer=True, min_n_ticks=1, nbins=3)
        histogram.grid(visible=False, axis="x")
    return png.getvalue()


def threshold_curve(band: Band, *, threshold: float) -> bytes:
    """MCC of the test set at all thresholds of `band`, which contain the `threshold` in use."""
    current, best = float(band.mcc[band.thresholds == threshold][0]), float(band.mcc.max())
    title = f"Threshold {threshold:.4g} has MCC {current:.3f}; the best threshold for these images has {best:.3f}"
    with new_figure(title) as (figure, png):
        axes = figure.add_subplot()
        draw_interval(axes, band.thresholds, band.low, band.high, f"{level_text(band.level)} interval of MCC")
        axes.plot(band.thresholds, band.mcc, color=BLUE, label="MCC")
        axes.axvline(threshold, color=ORANGE, linewidth=1.2)
        mark_threshold(axes, threshold, current, f"threshold {threshold:.4g}")
        axes.set(xlabel="threshold on the probability", ylabel="MCC", xlim=(-0.01, 1.01))
        legend_above(axes)
    return png.getvalue()


def risk_coverage_curve(
    curve: RiskCoverage, *, kind: str, alpha: float, certified: tuple[float, float] | None
) -> bytes:
    """Risk against coverage. `certified` is the coverage of the certified rule and its risk, if there is a rule."""
    title = "no abstention rule" if certified is None else f"{certified[0]:.0%} predicted, risk {certified[1]:.1%}"
    with new_figure(f"Risk of {RISK_TITLES[kind]}: {title}") as (figure, png):
        axes = figure.subplots()
        axes.fill_between(curve.coverage, curve.low, curve.high, step="pre", color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(curve.coverage, curve.risk, color=BLUE, drawstyle="steps-pre", label="most certain images first")
        axes.axhline(alpha, color=GRAY, linewidth=1.2, linestyle=DASHED, label=f"allowed risk, {alpha:g}")
        if certified is not None:
            mark_threshold(axes, *certified, "certified rule")
        # Show the allowed risk and the right half of the curve; the left half is noisy.
        top = max(3 * alpha, 1.2 * float(curve.risk[curve.coverage >= 0.5].max(initial=0.0)))
        axes.set(xlabel="share of images predicted", ylabel=RISK_TITLES[kind], xlim=(0, 1.02), ylim=(-0.02 * top, top))
        axes.legend(loc="upper left")
    return png.getvalue()


def pareto_plot(values: FloatArray, on_front: Sequence[bool], *, names: Sequence[str], selected: int) -> bytes:
    """Every candidate by each pair of neighboring objectives.

    Args:
        values: (K, D) objectives of K candidates; lower is better in all D.
        on_front: (K,) whether no other candidate dominates this one.
        names: (D,) of the objectives.
        selected: the position of the selected candidate.
    """
    front = np.asarray(on_front, dtype=bool)
    with new_figure(f"{front.sum()} of {len(values)} candidates are on the Pareto front", 3.6) as (figure, png):
        panels = np.atleast_1d(figure.subplots(1, len(names) - 1))
        for k, axes in enumerate(panels):
            axes.scatter(*values[~front, k : k + 2].T, s=10, color=GRAY, alpha=0.5, label="dominated")
            axes.scatter(*values[front, k : k + 2].T, s=18, color=BLUE, label="Pareto front")
            axes.scatter(*values[[selected], k : k + 2].T, s=70, color=ORANGE, zorder=3, label="selected")
            axes.set(xlabel=names[k], ylabel=names[k + 1])
            axes.locator_params(nbins=4)
        panels[0].legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3)
    return png.getvalue()


def _curve_and_counts(predictions: Predictions, threshold: float) -> tuple[ThresholdCounts, Counts]:
    """The counts at every threshold, and at this one."""
    labels, p = predictions.labels, predictions.probabilities
    return threshold_counts(labels, p), confusion_counts(labels, decide(p, threshold))


def _drawn_positions(curve: ThresholdCounts) -> NDArray[np.intp]:
    """All positions, or evenly spaced ones that include both ends."""
    last = curve.scores.size
    return np.unique(np.linspace(0, last, min(last + 1, MAX_POINTS)).astype(np.intp))


def _unit_square(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

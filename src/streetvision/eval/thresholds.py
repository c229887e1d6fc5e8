"""Thresholds: the rule that turns a probability into a decision, and the ways to select the threshold.

A threshold selected here is in the middle of the gap between two neighboring probabilities of the data, so the counts
reported with it are exactly those that `decide` gives on the same probabilities.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, FloatArray, ThresholdCounts, checked_arrays, threshold_counts
from streetvision.eval.figures import (
    BLUE,
    GREEN,
    HEIGHT,
    ORANGE,
    draw_interval,
    legend_above,
    mark_threshold,
    new_figure,
)
from streetvision.eval.metrics import count_metrics, fpr, mcc, positive_probability, recall

if TYPE_CHECKING:
    from streetvision.eval.stability import Band

SWEEP_COLUMNS = ("threshold", "mcc", "tp", "tn", "fp", "fn")
FLOAT32_BYTES = 4
CHUNK = 1 << 16
"""Thresholds evaluated at a time, so that the working arrays stay in the processor's cache."""
MCC_TOLERANCE = 1e-12
"""Thresholds whose MCC differs by less are equally good."""


def decide(probabilities: ArrayLike, threshold: float | FloatArray) -> BoolArray:
    """True where class 1 is predicted: where the probability is at least the threshold."""
    decisions: BoolArray = np.asarray(probabilities) >= threshold
    return decisions


def select_threshold_max_mcc(
    logits: Any, labels: Any, n_thresholds: int = 5000, return_curve: bool = False
) -> tuple[float, float, dict[str, Any]]:
    """Select the threshold on the probability of class 1 that maximizes MCC, exactly.

    The search covers every distinct threshold. An evenly spaced grid on [0, 1] is evaluated too, for comparison.

    Args:
        logits: (N, 2), a numpy array or a torch tensor of any floating type on any device.
        labels: (N,) 0 or 1.
        n_thresholds: size of the grid.
        return_curve: add the arrays of the grid to the metrics under `curve`: thresholds, mcc, tp, tn, fp, fn.

    Returns:
        The threshold, its MCC, and a dict of metrics. `grid_threshold` and `grid_mcc` are the best of the grid, at the
        lowest threshold with that MCC. The others belong to the exact optimum: mcc, accuracy, precision, recall, f1,
        fnr, fpr, tp, tn, fp, fn, prevalence and n.

    Raises:
        DataError: no rows, one class only, logits that are not finite or not (N, 2), labels other than 0 and 1 or of
            another length, fewer than two thresholds.
    """
    if n_thresholds < 2:
        raise DataError(f"n_thresholds must be >= 2; got {n_thresholds}", "5000 is usual")
    arrays = checked_arrays(_as_numpy(labels), positive_probability(_as_numpy(logits)))
    candidates = _candidates(*arrays)
    best = _best_position(candidates)
    counts = candidates.counts(best)
    thresholds = np.linspace(0.0, 1.0, n_thresholds)
    grid = candidates.at(thresholds)
    curve = {
        "thresholds": thresholds,
        "mcc": np.asarray(mcc(grid)),
        **{name: getattr(grid, name).astype(np.int64) for name in ("tp", "tn", "fp", "fn")},
    }
    peak = int(np.argmax(curve["mcc"]))
    metrics: dict[str, Any] = {
        **count_metrics(counts),
        **{name: int(getattr(counts, name)) for name in ("tp", "tn", "fp", "fn")},
        "grid_threshold": float(thresholds[peak]),
        "grid_mcc": float(curve["mcc"][peak]),
        "prevalence": float(counts.positives / counts.total),
        "n": int(counts.total),
    }
    if return_curve:
        metrics["curve"] = curve
    return _threshold_at(candidates, best), metrics["mcc"], metrics


def threshold_for_prevalence(labels: ArrayLike, probabilities: ArrayLike, prevalence: float | None = None) -> float:
    """The threshold of highest MCC if the share of positives were `prevalence`.

    Args:
        labels: (N,) 0 or 1, not checked.
        probabilities: (N,) of class 1, not checked.
        prevalence: 0.5 for balanced classes; None for the share in the labels. Rows are weighted by class to match it.

    Raises:
        DataError: one class only, or a prevalence outside (0, 1).
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise DataError(f"prevalence must be between 0 and 1; got {prevalence}", "use 0.5 for balanced classes")
    candidates = _candidates(labels, probabilities)
    return _threshold_at(candidates, _best_position(candidates, prevalence))


def threshold_for_recall(labels: ArrayLike, probabilities: ArrayLike, target: float) -> float:
    """The highest threshold, so the one with the fewest false alarms, with a recall of at least `target`.

    Labels (N,) and probabilities (N,) are not checked.

    Raises:
        DataError: one class only, or a target outside [0, 1].
    """
    _check_rate("recall", target)
    candidates = _candidates(labels, probabilities)
    sufficient = np.flatnonzero(recall(candidates.counts(slice(_n_reachable(candidates)))) >= target)
    return _threshold_at(candidates, int(sufficient[-1]))


def threshold_for_fpr(labels: ArrayLike, probabilities: ArrayLike, target: float) -> float:
    """The lowest threshold, so the one with the fewest misses, with a false alarm rate of at most `target`.

    Labels (N,) and probabilities (N,) are not checked.

    Raises:
        DataError: one class only, a target outside [0, 1], or so many negatives with probability 1 that no threshold
            reaches the target.
    """
    _check_rate("false alarm rate", target)
    candidates = _candidates(labels, probabilities)
    rates = np.asarray(fpr(candidates.counts(slice(_n_reachable(candidates)))))
    if rates[-1] > target:
        raise DataError(
            f"no threshold has a false alarm rate of {target} or less: at threshold 1.0 it is {rates[-1]:.3g}",
            "check the negatives with probability 1, or allow a higher rate",
        )
    return _threshold_at(candidates, int(np.argmax(rates <= target)))


def sweep_csv(curve: dict[str, NDArray[Any]]) -> str:
    """The grid of `select_threshold_max_mcc` as CSV: a header, then one row per threshold."""
    columns = (curve["thresholds"].tolist(), *(curve[name].tolist() for name in SWEEP_COLUMNS[1:]))
    rows = (",".join(map(repr, row)) for row in zip(*columns, strict=True))
    return "\n".join([",".join(SWEEP_COLUMNS), *rows]) + "\n"


def plot_mcc_curve(
    metrics_or_curve: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    threshold: float | None = None,
    band: "Band | None" = None,
    threshold_interval: tuple[float, float] | None = None,
) -> bytes:
    """Plot MCC and the confusion counts over the thresholds of the grid, in two panels.

    Args:
        metrics_or_curve: the metrics of `select_threshold_max_mcc(..., return_curve=True)`, or only their `curve`.
        path: the PNG file to write; None to write none.
        threshold: the exact optimum, to which the MCC in the metrics belongs; None marks the best of the grid.
        band: bootstrap intervals of MCC.
        threshold_interval: the range of the optimum over bootstrap resamples.

    Returns:
        The PNG bytes.
    """
    curve: Mapping[str, NDArray[Any]] = metrics_or_curve.get("curve", metrics_or_curve)
    thresholds, values = np.asarray(curve["thresholds"]), np.asarray(curve["mcc"])
    peak = int(np.argmax(values))
    best_threshold, best, label = float(thresholds[peak]), float(values[peak]), "best of the grid"
    if threshold is not None:
        exact = metrics_or_curve["mcc"] if "curve" in metrics_or_curve else values[thresholds <= threshold][-1]
        best_threshold, best, label = threshold, float(exact), "exact optimum"
    text = f"{best:.3f}"
    if band is not None and (at_best := band.thresholds == best_threshold).any():
        text += f" [{band.low[at_best][0]:.3f}, {band.high[at_best][0]:.3f}]"
    with new_figure(f"Maximum MCC {text} at threshold {best_threshold:.4g}", 1.6 * HEIGHT) as (figure, png):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        if threshold_interval is not None:
            above.axvspan(*threshold_interval, color=ORANGE, alpha=0.12, linewidth=0, label="optimum of resamples")
        if band is not None:
            draw_interval(above, band.thresholds, band.low, band.high, f"{band.level:.0%} interval of MCC")
        above.plot(thresholds, values, color=BLUE, drawstyle="steps-pre", label=f"grid of {thresholds.size:,}")
        mark_threshold(above, best_threshold, best, label)
        above.set(ylabel="MCC")
        legend_above(above, 2)
        # Correct decisions are solid, errors are dashed; one color per class.
        lines = {"tp": ("TP", BLUE, "-"), "fn": ("FN", BLUE, "--"), "tn": ("TN", GREEN, "-"), "fp": ("FP", GREEN, "--")}
        for name, (title, color, style) in lines.items():
            below.plot(thresholds, curve[name], color=color, linestyle=style, drawstyle="steps-pre", label=title)
        below.set(xlabel="threshold on the probability", ylabel="images", xlim=(-0.01, 1.01))
        legend_above(below, 4)
        for axes in (above, below):
            axes.axvline(best_threshold, color=ORANGE, linewidth=1.2)
    content = png.getvalue()
    if path is not None:
        Path(path).write_bytes(content)
    return content


def _as_numpy(values: Any) -> Any:
    """A numpy array of a tensor, and other values as they are; bfloat16, which numpy lacks, becomes float32."""
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.element_size() < FLOAT32_BYTES else tensor).numpy()
    return array


def _candidates(labels: ArrayLike, probabilities: ArrayLike) -> ThresholdCounts:
    """The counts at every distinct threshold; DataError unless both classes are present."""
    candidates = threshold_counts(labels, probabilities)
    if candidates.positives == 0 or candidates.negatives == 0:
        only = 0 if candidates.positives == 0 else 1
        raise DataError(
            f"all {int(candidates.positives + candidates.negatives)} labels are {only}; "
            "a threshold needs rows of both classes",
            "use a split with both classes, or more data",
        )
    return candidates


def _check_rate(name: str, target: float) -> None:
    if not 0 <= target <= 1:
        raise DataError(f"the target {name} must be in [0, 1]; got {target}", "use a fraction, such as 0.95")


def _n_reachable(candidates: ThresholdCounts) -> int:
    """The number of positions that a threshold in [0, 1] can give: "none positive" needs one above every score."""
    return candidates.scores.size + int(candidates.scores[-1] < 1)


def _best_position(candidates: ThresholdCounts, prevalence: float | None = None) -> int:
    """The position of highest MCC; among equals the one in the widest gap between neighboring scores."""
    positive_weight, negative_weight = 1.0, 1.0
    if prevalence is not None:
        positive_weight = prevalence / float(candidates.positives)
        negative_weight = (1 - prevalence) / float(candidates.negatives)
    values = np.empty(_n_reachable(candidates))
    for start in range(0, values.size, CHUNK):
        part = slice(start, min(start + CHUNK, values.size))
        c = candidates.counts(part)
        values[part] = mcc(
            Counts(c.tp * positive_weight, c.tn * negative_weight, c.fp * negative_weight, c.fn * positive_weight)
        )
    equals = np.flatnonzero(values >= values.max() - MCC_TOLERANCE)
    lower, upper = _gaps(candidates, equals)
    return int(equals[np.argmax(upper - lower)])


def _threshold_at(candidates: ThresholdCounts, position: int) -> float:
    """A threshold that gives exactly the counts at this position: the middle of its gap."""
    lower, upper = (float(edge) for edge in _gaps(candidates, position))
    middle = lower + (upper - lower) / 2
    # Between adjacent floats the middle rounds to one of them. The upper one is right, since `decide` includes it.
    return middle if middle > lower else upper


def _gaps(candidates: ThresholdCounts, positions: Any) -> tuple[FloatArray, FloatArray]:
    """The scores below and above these positions; 0 and 1 at the ends."""
    edges = np.concatenate([[0.0], candidates.scores, [1.0]])
    return edges[positions], edges[np.add(positions, 1)]

"""Thresholds: the one rule that turns a probability into a decision, and the ways to choose its threshold.

A threshold chosen here lies in the middle of the gap between two neighbouring probabilities of the data, so the counts
reported with it are exactly those that `decide` gives on the same probabilities.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, Cuts, FloatArray, all_cuts
from streetvision.eval.metrics import count_metrics, fpr, mcc, positive_probability, recall

SWEEP_COLUMNS = ("threshold", "mcc", "tp", "tn", "fp", "fn")
FLOAT32_BYTES = 4
CHUNK = 1 << 16
"""Cuts judged at a time, so that the working arrays stay in the processor's cache."""
EQUAL_MCC = 1e-12
"""Two cuts whose MCC differs by less are equally good."""


def decide(probabilities: ArrayLike, threshold: float | FloatArray) -> BoolArray:
    """True where the answer is class 1: where the probability is at least the threshold."""
    decisions: BoolArray = np.asarray(probabilities) >= threshold
    return decisions


def select_threshold_max_mcc(
    logits: Any, labels: Any, n_thresholds: int = 5000, return_curve: bool = False
) -> tuple[float, float, dict[str, Any]]:
    """The threshold on the probability of class 1 that maximises MCC, exactly; its MCC; and a dict of figures.

    `logits` (N, 2) and `labels` (N,) are numpy arrays or torch tensors of any floating type on any device.
    The optimum is searched over every distinct cut. The evenly spaced grid of `n_thresholds` on [0, 1] that is usual
    is judged as well: `grid_threshold` and `grid_mcc` (the lowest of equals), and with `return_curve` the arrays of
    the whole grid under `curve`: thresholds, mcc, tp, tn, fp, fn. The other figures belong to the exact optimum:
    mcc, accuracy, precision, recall, f1, fnr, fpr, tp, tn, fp, fn, prevalence and n.

    Raises:
        DataError: no rows, one class only, logits that are not finite or not (N, 2), labels other than 0 and 1 or of
            another length, fewer than two thresholds.
    """
    if n_thresholds < 2:
        raise DataError(f"n_thresholds must be at least 2; got {n_thresholds}", "5000 is the usual grid")
    cuts = _two_class_cuts(_as_numpy(labels), positive_probability(_as_numpy(logits)))
    best = _best_cut(cuts)
    counts = cuts.counts(best)
    curve = _curve(cuts, n_thresholds)
    peak = int(np.argmax(curve["mcc"]))
    figures = {
        **count_metrics(counts),
        **{name: int(getattr(counts, name)) for name in ("tp", "tn", "fp", "fn")},
        "grid_threshold": float(curve["thresholds"][peak]),
        "grid_mcc": float(curve["mcc"][peak]),
        "prevalence": float(counts.positives / counts.total),
        "n": int(counts.total),
    }
    return _threshold(cuts, best), figures["mcc"], figures | ({"curve": curve} if return_curve else {})


def threshold_for_prevalence(labels: ArrayLike, probabilities: ArrayLike, prevalence: float | None = None) -> float:
    """The threshold of highest MCC, as if the share of positives were `prevalence`: 0.5 for balanced labels.

    `None` keeps the share that the labels have. The rows of each class are weighed so that the share is met.

    Raises:
        DataError: unusable arrays, one class only, or a prevalence outside (0, 1).
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise DataError(f"prevalence must lie between 0 and 1; got {prevalence}", "0.5 stands for balanced labels")
    cuts = _two_class_cuts(labels, probabilities)
    return _threshold(cuts, _best_cut(cuts, prevalence))


def threshold_for_recall(labels: ArrayLike, probabilities: ArrayLike, wanted: float) -> float:
    """The highest threshold, so with the fewest false alarms, whose recall on these rows is at least `wanted`.

    Raises:
        DataError: unusable arrays, one class only, or a wanted recall outside [0, 1].
    """
    _check_rate("recall", wanted)
    cuts = _two_class_cuts(labels, probabilities)
    reached = np.flatnonzero(recall(cuts.counts(slice(_reachable(cuts)))) >= wanted)
    return _threshold(cuts, int(reached[-1]))


def threshold_for_fpr(labels: ArrayLike, probabilities: ArrayLike, wanted: float) -> float:
    """The lowest threshold, so with the fewest misses, whose false alarm rate on these rows is at most `wanted`.

    Raises:
        DataError: unusable arrays, one class only, a wanted rate outside [0, 1], or so many negatives of
            probability 1 that no threshold keeps the rate.
    """
    _check_rate("false alarm rate", wanted)
    cuts = _two_class_cuts(labels, probabilities)
    rates = np.asarray(fpr(cuts.counts(slice(_reachable(cuts)))))
    if rates[-1] > wanted:
        raise DataError(
            f"no threshold keeps the false alarm rate at or below {wanted}: at 1.0 it is still {rates[-1]:.3g}",
            "the model gives some negatives the probability 1; look at these images, or allow a higher rate",
        )
    return _threshold(cuts, int(np.argmax(rates <= wanted)))


def sweep_csv(curve: dict[str, NDArray[Any]]) -> str:
    """The grid of `select_threshold_max_mcc` as CSV: a header, then one row a threshold."""
    columns = (curve["thresholds"].tolist(), *(curve[name].tolist() for name in SWEEP_COLUMNS[1:]))
    rows = (",".join(map(repr, row)) for row in zip(*columns, strict=True))
    return "\n".join([",".join(SWEEP_COLUMNS), *rows]) + "\n"


def _as_numpy(values: Any) -> NDArray[Any]:
    """A numpy array of a tensor or of anything array-like; bfloat16, which numpy lacks, widens to float32."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.element_size() < FLOAT32_BYTES else tensor).numpy()
    return array


def _two_class_cuts(labels: ArrayLike, probabilities: ArrayLike) -> Cuts:
    """Every cut, known to have rows of both classes."""
    cuts = all_cuts(labels, probabilities)
    if cuts.positives == 0 or cuts.negatives == 0:
        only = 0 if cuts.positives == 0 else 1
        raise DataError(
            f"all {int(cuts.positives + cuts.negatives)} labels are {only}; a threshold needs rows of both classes",
            "use a split that holds both, or more data",
        )
    return cuts


def _check_rate(name: str, wanted: float) -> None:
    if not 0 <= wanted <= 1:
        raise DataError(f"the wanted {name} must lie in [0, 1]; got {wanted}", "give a share, such as 0.95")


def _reachable(cuts: Cuts) -> int:
    """How many cuts some threshold in [0, 1] makes: "none positive" needs a threshold above the highest score."""
    return cuts.scores.size + int(cuts.scores[-1] < 1)


def _best_cut(cuts: Cuts, prevalence: float | None = None) -> int:
    """The cut of highest MCC; among equals the one in the widest gap between neighbouring scores."""
    per_positive, per_negative = 1.0, 1.0
    if prevalence is not None:
        per_positive = prevalence / float(cuts.positives)
        per_negative = (1 - prevalence) / float(cuts.negatives)
    values = np.empty(_reachable(cuts))
    for start in range(0, values.size, CHUNK):
        part = slice(start, min(start + CHUNK, values.size))
        at = cuts.counts(part)
        values[part] = mcc(
            Counts(at.tp * per_positive, at.tn * per_negative, at.fp * per_negative, at.fn * per_positive)
        )
    equals = np.flatnonzero(values >= values.max() - EQUAL_MCC)
    lower, upper = _gaps(cuts, equals)
    return int(equals[np.argmax(upper - lower)])


def _threshold(cuts: Cuts, cut: int) -> float:
    """A threshold that makes exactly this cut: the middle of its gap.

    Between neighbouring floats the middle rounds to one of them; the upper one is right, since `decide` includes it.
    """
    lower, upper = (float(edge) for edge in _gaps(cuts, cut))
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper


def _gaps(cuts: Cuts, chosen: Any) -> tuple[FloatArray, FloatArray]:
    """The scores below and above the `chosen` cuts; 0 and 1 at the ends."""
    edges = np.concatenate([[0.0], cuts.scores, [1.0]])
    return edges[chosen], edges[np.add(chosen, 1)]


def _curve(cuts: Cuts, n_thresholds: int) -> dict[str, NDArray[Any]]:
    """The evenly spaced grid on [0, 1]: thresholds, mcc and the four counts, (n_thresholds,) each."""
    thresholds = np.linspace(0.0, 1.0, n_thresholds)
    counts = cuts.at(thresholds)
    whole = {name: getattr(counts, name).astype(np.int64) for name in ("tp", "tn", "fp", "fn")}
    return {"thresholds": thresholds, "mcc": np.asarray(mcc(counts)), **whole}

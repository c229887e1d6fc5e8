"""How far a threshold, and the MCC over all thresholds, move when the data are drawn anew.

Legend: N rows, U units, R resamples, T thresholds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from streetvision.eval import intervals
from streetvision.eval.bootstrap import USUAL
from streetvision.eval.counts import Counts, FloatArray, all_cuts, checked
from streetvision.eval.metrics import METRICS, mcc
from streetvision.eval.resampling import CountsAtEdges, Resampling, draw_weights
from streetvision.eval.thresholds import decide, threshold_for_prevalence


@dataclass(frozen=True)
class Band:
    """MCC at each of `thresholds`, with its confidence interval; arrays of shape (T,)."""

    thresholds: FloatArray
    mcc: FloatArray
    low: FloatArray
    high: FloatArray
    level: float
    """Of the intervals: 0.95."""


def mcc_band(labels: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike, how: Resampling = USUAL) -> Band:
    """MCC of labels (N,) and probabilities (N,) at each of thresholds (T,), with BCa intervals over the counts.

    Each interval is for its own threshold; the band as a whole does not hold the whole curve with this confidence.
    Where resampling shows no spread, the interval is what the counts could not show (`intervals.unseen_counts`).

    Raises:
        DataError: unusable arrays, not one group a row.
    """
    truth, p = checked(labels, probabilities)
    at, units = np.asarray(thresholds, dtype=np.float64), how.units(truth.size)
    order = np.argsort(p, kind="stable")
    count = CountsAtEdges(truth[order], np.searchsorted(p[order], at, side="left"))
    weights = draw_weights(units, how.n_resamples, how.seed)
    replicates = np.concatenate([_mcc_of_both_classes(count(w.take(order, axis=1))) for w in weights]).T  # (T, R)
    of_units = (units.counts(truth, decide(p, float(threshold))) for threshold in at)
    ends = [
        intervals.of_counts(METRICS["mcc"], one, drawn, how.level)[1]
        for one, drawn in zip(of_units, replicates, strict=True)
    ]
    low, high = np.array(ends).T
    estimates = np.asarray(mcc(all_cuts(truth, p).at(at)))
    return Band(at, estimates, np.minimum(low, estimates), np.maximum(high, estimates), how.level)


def threshold_interval(labels: ArrayLike, probabilities: ArrayLike, how: Resampling = USUAL) -> tuple[float, float]:
    """Where the central `level` of the MCC-optimal thresholds lies, each chosen anew on a resample of the rows.

    It says how far the choice can be trusted, not where a true threshold lies: the optimum of a step function has no
    normal limit, and near it MCC is flat. Resamples that hold one class only have no optimum and do not count.

    Raises:
        DataError: as `mcc_band` does; or one class only.
    """
    truth, p = checked(labels, probabilities)
    threshold_for_prevalence(truth, p)  # one class only is an error before the first resample
    weights = (row for rows in draw_weights(how.units(truth.size), how.n_resamples, how.seed) for row in rows)
    drawn = ((np.repeat(truth, row), np.repeat(p, row)) for row in weights)
    chosen = [threshold_for_prevalence(labels, p) for labels, p in drawn if labels.any() and not labels.all()]
    low, high = np.quantile(chosen, [(1 - how.level) / 2, (1 + how.level) / 2])
    return float(low), float(high)


def _mcc_of_both_classes(counts: Counts) -> FloatArray:
    """MCC, and nan where a resample lost one of the two classes."""
    return np.where((counts.positives == 0) | (counts.negatives == 0), np.nan, mcc(counts))

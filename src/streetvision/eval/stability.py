"""The threshold over bootstrap resamples: its variation, its mean, and MCC at all thresholds.

Shapes: N rows, U units, R resamples, T thresholds, E distinct edges of the sorted rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from streetvision.eval import intervals
from streetvision.eval.counts import Counts, FloatArray, threshold_counts
from streetvision.eval.metrics import METRICS, mcc
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import DEFAULT_RESAMPLING, CountsAtEdges, Resampling, draw_weights
from streetvision.eval.thresholds import decide, threshold_for_prevalence

N_BAGGED = 100
"""Resamples of `bagged_threshold`; more would reduce the variance of the mean by at most 1 %."""
MAX_LOG_ODDS = 14.0
"""Larger log-odds, of probabilities within 1e-6 of 0 or 1, do not move the mean further."""


@dataclass(frozen=True)
class Band:
    """MCC at each threshold with its confidence interval; arrays of shape (T,)."""

    thresholds: FloatArray
    mcc: FloatArray
    low: FloatArray
    high: FloatArray
    level: float
    """Confidence level of the intervals."""


def mcc_band(predictions: Predictions, thresholds: ArrayLike, resampling: Resampling = DEFAULT_RESAMPLING) -> Band:
    """MCC at each of the thresholds (T,), with BCa intervals.

    Each interval holds for its own threshold; the band does not contain the whole curve with this confidence. If the
    resamples do not vary, the interval is `intervals.bound_counts`.
    """
    labels, p, units = predictions.labels, predictions.probabilities, predictions.units
    at = np.asarray(thresholds, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    # Thresholds between the same two probabilities give the same decisions, so they share one interval.
    edges, first, at_edge = np.unique(
        np.searchsorted(p[order], at, side="left"), return_index=True, return_inverse=True
    )
    counts_at = CountsAtEdges(labels[order], edges)
    weights = draw_weights(units, resampling.n_resamples, resampling.seed)
    replicates = np.concatenate([_mcc_of_both_classes(counts_at(w.take(order, axis=1))) for w in weights]).T  # (E, R)
    unit_counts = (units.counts(labels, decide(p, float(threshold))) for threshold in at[first])
    bounds = [
        intervals.count_metric_interval(METRICS["mcc"], counts, drawn, resampling.level)[1]
        for counts, drawn in zip(unit_counts, replicates, strict=True)
    ]
    low, high = np.array(bounds)[at_edge].T
    estimates = np.asarray(mcc(threshold_counts(labels, p).at(at)))
    return Band(at, estimates, np.minimum(low, estimates), np.maximum(high, estimates), resampling.level)


def threshold_interval(predictions: Predictions, resampling: Resampling = DEFAULT_RESAMPLING) -> tuple[float, float]:
    """The central `level` range of the MCC-optimal thresholds of the resamples.

    It shows how stable the selection is, not where a true threshold is: the optimum of a step function has no normal
    limit, and MCC is flat near it. Resamples of one class have no optimum and are ignored.

    Raises:
        DataError: one class only.
    """
    low, high = np.quantile(
        _resampled_optima(predictions, resampling, None), [(1 - resampling.level) / 2, (1 + resampling.level) / 2]
    )
    return float(low), float(high)


def bagged_threshold(predictions: Predictions, prevalence: float | None = None, *, seed: int = 0) -> float:
    """The mean, in log-odds, of the MCC-optimal thresholds of bootstrap resamples of the units.

    The optimum of one set of rows depends on a few rows near it. Its mean over resamples (bagging, Breiman 1996) varies
    less, as Buehlmann and Yu (2002) show for estimators with jumps. `docs/concepts/calibration.md` has the MCC that
    this gains on other rows. Where no threshold of a resample has a positive MCC, the best is outside the scores, at a
    distance that means nothing; it counts as the nearest score.

    Args:
        predictions: N rows in U units.
        prevalence: The share of positives for which the threshold is optimal; None: that of the rows.
        seed: Seed of the resamples.

    Raises:
        DataError: One class only, or a prevalence outside (0, 1).
    """
    optima = _resampled_optima(predictions, Resampling(n_resamples=N_BAGGED, seed=seed), prevalence)
    within = np.clip(optima, predictions.probabilities.min(), predictions.probabilities.max())
    return float(expit(np.clip(logit(within), -MAX_LOG_ODDS, MAX_LOG_ODDS).mean()))


def _resampled_optima(predictions: Predictions, resampling: Resampling, prevalence: float | None) -> FloatArray:
    """The MCC-optimal threshold of each resample that has both classes, (R,); of all rows if no resample has both.

    Raises:
        DataError: One class only, or a prevalence outside (0, 1).
    """
    labels, p = predictions.labels, predictions.probabilities
    of_all = threshold_for_prevalence(labels, p, prevalence)
    weights = draw_weights(predictions.units, resampling.n_resamples, resampling.seed)
    resamples = ((np.repeat(labels, row), np.repeat(p, row)) for chunk in weights for row in chunk)
    optima = [threshold_for_prevalence(*drawn, prevalence) for drawn in resamples if 0 < drawn[0].mean() < 1]
    return np.array(optima or [of_all])


def _mcc_of_both_classes(counts: Counts) -> FloatArray:
    """MCC, and nan for resamples that lost one of the two classes."""
    return np.where((counts.positives == 0) | (counts.negatives == 0), np.nan, mcc(counts))

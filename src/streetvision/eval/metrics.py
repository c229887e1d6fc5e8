"""The metrics of a binary classifier, as functions of arrays, and the table of all metrics.

A metric is computed from its `Basis`: the confusion counts at one threshold, the counts at every threshold, or terms
for each row. All three accept leading axes, so one call evaluates a metric on many resamples.
Results are float64, since products of integer counts overflow 64 bits above about 110,000 rows.
A ratio whose denominator is 0 is 0, as in scikit-learn with `zero_division=0`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import (
    Counts,
    FloatArray,
    ThresholdCounts,
    Values,
    checked_arrays,
    confusion_counts,
    real_array,
    threshold_counts,
)

ECE_BINS = 15
TINY = np.finfo(np.float64).tiny


def positive_probability(logits: ArrayLike) -> FloatArray:
    """The probability of class 1 (N,) from logits (N, 2): softmax, as the sigmoid of the difference, in float64.

    Every probability of the package comes from this function or from a calibrator, so a threshold selects the same
    rows everywhere.

    Raises:
        DataError: the logits are not (N, 2), not finite, or not numbers.
    """
    pairs = real_array(logits, "logits")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DataError(
            f"logits must have shape (N, 2), one column per class; got {pairs.shape}",
            "pass the raw two-class output of the model",
        )
    if not np.isfinite(pairs).all():
        invalid = int(np.count_nonzero(~np.isfinite(pairs).all(axis=1)))
        raise DataError(
            f"{invalid} of {len(pairs)} rows of logits are not finite", "find the images with non-finite model output"
        )
    probabilities: FloatArray = expit(np.subtract(pairs[:, 1], pairs[:, 0], dtype=np.float64))
    return probabilities


def accuracy(counts: Counts) -> Values:
    """Share of correct decisions."""
    return _ratio(counts.tp + counts.tn, counts.total)


def precision(counts: Counts) -> Values:
    """Share of predicted positives that are positive: TP / (TP + FP)."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Counts) -> Values:
    """Share of positives that are predicted positive: TP / (TP + FN)."""
    return _ratio(counts.tp, counts.positives)


def f1(counts: Counts) -> Values:
    """Harmonic mean of precision and recall."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def fnr(counts: Counts) -> Values:
    """Miss rate, the share of positives that are predicted negative: FN / (FN + TP)."""
    return _ratio(counts.fn, counts.positives)


def fpr(counts: Counts) -> Values:
    """False alarm rate, the share of negatives that are predicted positive: FP / (FP + TN)."""
    return _ratio(counts.fp, counts.negatives)


def mcc(counts: Counts) -> Values:
    """Matthews correlation coefficient in [-1, 1]; 0 if the labels or the decisions have only one class.

    References:
        Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9.
    """
    tp, tn, fp, fn = (np.asarray(cell, dtype=np.float64) for cell in (counts.tp, counts.tn, counts.fp, counts.fn))
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return _ratio(tp * tn - fp * fn, np.sqrt(margins))


def area_under_roc(curve: ThresholdCounts) -> Values:
    """Area under the ROC curve: the probability that a positive ranks above a negative; ties count half.

    nan if one class is absent.
    """
    # Trapezoids between neighboring thresholds, times two.
    twice = np.vecdot(curve.fp[..., :-1] - curve.fp[..., 1:], curve.tp[..., :-1] + curve.tp[..., 1:])
    pairs = curve.positives * curve.negatives
    return np.where(pairs == 0, np.nan, _ratio(twice, 2 * pairs))[()]


def average_precision(curve: ThresholdCounts) -> Values:
    """Area under the precision-recall curve as in scikit-learn: precision summed over the steps of recall.

    0 without positives.
    """
    tp = curve.tp[..., :-1]
    precisions = _ratio(tp, tp + curve.fp[..., :-1])
    return _ratio(np.vecdot(tp - curve.tp[..., 1:], precisions), curve.positives)


class Terms(NamedTuple):
    """The contribution of each row to a metric: sum within each bin, absolute values, then the mean over rows."""

    values: FloatArray
    """(N,)"""
    bins: NDArray[np.intp] | None = None
    """(N,) non-decreasing in the probability; None if all rows share one bin."""


def ece_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Label minus probability of each row, in 15 bins of equal width."""
    p = np.asarray(probabilities, dtype=np.float64)
    return Terms(np.asarray(labels) - p, bin_index(p))


def brier_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Squared difference of probability and label."""
    differences: FloatArray = np.asarray(labels) - np.asarray(probabilities, dtype=np.float64)
    return Terms(differences**2)


def nll_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Negative log-likelihood in nats; probabilities are clipped to 2.2e-16 from 0 and 1, as in scikit-learn."""
    edge = np.finfo(np.float64).eps
    p = np.clip(np.asarray(probabilities, dtype=np.float64), edge, 1 - edge)
    return Terms(-np.where(np.asarray(labels) == 1, np.log(p), np.log1p(-p)))


def mean_of_terms(terms: Terms) -> float:
    """The metric with these terms."""
    sums = terms.values.sum() if terms.bins is None else np.bincount(terms.bins, weights=terms.values)
    return float(np.abs(sums).sum() / terms.values.size)


def roc_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve of labels (N,) and probabilities (N,); nan if one class is absent.

    Raises:
        DataError: invalid arrays, as for `Predictions`.
    """
    return float(area_under_roc(threshold_counts(*checked_arrays(labels, probabilities))))


def pr_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Average precision of labels (N,) and probabilities (N,); 0 without positives.

    Raises:
        DataError: invalid arrays, as for `Predictions`.
    """
    return float(average_precision(threshold_counts(*checked_arrays(labels, probabilities))))


def ece(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error of the probability of class 1, over 15 bins of equal width.

    The mean over rows of |observed frequency - mean probability| of the row's bin. It is above 0 even for perfectly
    calibrated probabilities: `reliability.ece_band` gives the range to expect.

    References:
        Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602.
    """
    return mean_of_terms(ece_terms(labels, probabilities))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Brier score: mean squared difference of probability and label."""
    return mean_of_terms(brier_terms(labels, probabilities))


def nll(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood in nats."""
    return mean_of_terms(nll_terms(labels, probabilities))


def bin_index(probabilities: FloatArray, n_bins: int = ECE_BINS) -> NDArray[np.intp]:
    """The index of the bin of each probability, among `n_bins` bins of equal width; the last bin includes 1."""
    return np.minimum((probabilities * n_bins).astype(np.intp), n_bins - 1)


class Basis(Enum):
    """The input of a metric's function."""

    COUNTS = "counts"
    """function(counts) -> (...,), from the confusion counts at one threshold."""
    THRESHOLDS = "thresholds"
    """function(curve) -> (...,), from the counts at every threshold."""
    TERMS = "terms"
    """function(labels, probabilities) -> Terms; the metric is their `mean_of_terms`."""


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics."""

    title: str
    basis: Basis
    function: Callable[..., Any]
    higher_is_better: bool = True
    lowest: float = 0.0
    """The lower end of the metric's scale."""


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mcc": Metric("MCC", Basis.COUNTS, mcc, lowest=-1.0),
        "accuracy": Metric("Accuracy", Basis.COUNTS, accuracy),
        "precision": Metric("Precision", Basis.COUNTS, precision),
        "recall": Metric("Recall", Basis.COUNTS, recall),
        "f1": Metric("F1", Basis.COUNTS, f1),
        "fnr": Metric("Miss rate (FNR)", Basis.COUNTS, fnr, higher_is_better=False),
        "fpr": Metric("False alarm rate (FPR)", Basis.COUNTS, fpr, higher_is_better=False),
        "roc_auc": Metric("ROC-AUC", Basis.THRESHOLDS, area_under_roc),
        "pr_auc": Metric("PR-AUC", Basis.THRESHOLDS, average_precision),
        "ece": Metric("ECE", Basis.TERMS, ece_terms, higher_is_better=False),
        "brier": Metric("Brier score", Basis.TERMS, brier_terms, higher_is_better=False),
        "nll": Metric("NLL", Basis.TERMS, nll_terms, higher_is_better=False),
    }
)
"""Name -> metric, in reading order."""


def count_metrics(counts: Counts) -> dict[str, float]:
    """Every metric of the table that depends on the four counts (numbers) only."""
    return {name: float(m.function(counts)) for name, m in METRICS.items() if m.basis is Basis.COUNTS}


def all_metrics(labels: ArrayLike, probabilities: ArrayLike, decisions: ArrayLike) -> dict[str, float]:
    """Every metric of the table. Labels (N,), probabilities (N,) and decisions (N,) are not checked."""
    truth, p = np.asarray(labels, dtype=np.bool_), np.asarray(probabilities, dtype=np.float64)
    counts, curve = confusion_counts(truth, decisions), threshold_counts(truth, p)
    evaluate: dict[Basis, Callable[[Metric], Values]] = {
        Basis.COUNTS: lambda metric: metric.function(counts),
        Basis.THRESHOLDS: lambda metric: metric.function(curve),
        Basis.TERMS: lambda metric: mean_of_terms(metric.function(truth, p)),
    }
    return {name: float(evaluate[metric.basis](metric)) for name, metric in METRICS.items()}


def _ratio(numerator: Any, denominator: Any) -> Values:
    """The numerator over the denominator (at least 0) in float64; 0 if both are 0."""
    quotient: Values = np.divide(numerator, np.maximum(denominator, TINY, dtype=np.float64), dtype=np.float64)
    return quotient

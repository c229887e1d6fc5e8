"""Every metric of a two-class classifier, as plain functions over arrays, and the table of them all.

A metric is computed from one of three things, its `Basis`: the four counts at one cut, the counts at every cut, or
one or more terms for each row. All three take leading axes, so one call evaluates a metric on many resamples.
Everything is float64: products of whole-number counts overflow 64-bit integers above about 110,000 rows.
A ratio whose denominator is 0 is 0, as scikit-learn has it with `zero_division=0`.
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
from streetvision.eval.counts import Counts, Cuts, FloatArray, Values, all_cuts, checked, confusion_counts

ECE_BINS = 15
TINY = np.finfo(np.float64).tiny


def positive_probability(logits: ArrayLike) -> FloatArray:
    """Probability of class 1 (N,) of logits (N, 2): softmax, as the sigmoid of the difference, in float64.

    Every probability of the project comes from this function or from a calibrator, so that a threshold means the
    same rows wherever it is applied.

    Raises:
        DataError: the logits are not (N, 2), or not finite.
    """
    pairs = np.asarray(logits)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DataError(
            f"logits must have the shape (N, 2), one column a class; got {pairs.shape}",
            "give the raw two-class output of the model",
        )
    if not np.isfinite(pairs).all():
        bad = int(np.count_nonzero(~np.isfinite(pairs).all(axis=1)))
        raise DataError(f"{bad} of {len(pairs)} rows of logits are not finite", "find the images the model fails on")
    probabilities: FloatArray = expit(np.subtract(pairs[:, 1], pairs[:, 0], dtype=np.float64))
    return probabilities


def accuracy(counts: Counts) -> Values:
    """Share of all rows that were decided rightly."""
    return _ratio(counts.tp + counts.tn, counts.total)


def precision(counts: Counts) -> Values:
    """Share of the rows called positive that are."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Counts) -> Values:
    """Share of the positives that were found."""
    return _ratio(counts.tp, counts.positives)


def f1(counts: Counts) -> Values:
    """Harmonic mean of precision and recall."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def fnr(counts: Counts) -> Values:
    """Share of the positives that were missed: FN / (FN + TP)."""
    return _ratio(counts.fn, counts.positives)


def fpr(counts: Counts) -> Values:
    """Share of the negatives that were called positive: FP / (FP + TN)."""
    return _ratio(counts.fp, counts.negatives)


def mcc(counts: Counts) -> Values:
    """Matthews correlation of labels and decisions, in [-1, 1]; 0 when either has one class only.

    Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9.
    """
    tp, tn, fp, fn = (np.asarray(cell, dtype=np.float64) for cell in (counts.tp, counts.tn, counts.fp, counts.fn))
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return _ratio(tp * tn - fp * fn, np.sqrt(margins))


def area_under_roc(cuts: Cuts) -> Values:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half.

    nan when one class is absent.
    """
    doubled = np.vecdot(cuts.fp[..., :-1] - cuts.fp[..., 1:], cuts.tp[..., :-1] + cuts.tp[..., 1:])
    pairs = cuts.positives * cuts.negatives
    return np.where(pairs == 0, np.nan, _ratio(doubled, 2 * pairs))[()]


def average_precision(cuts: Cuts) -> Values:
    """Area under the precision-recall curve as scikit-learn defines it: precision summed over steps of recall.

    0 when there is no positive.
    """
    tp = cuts.tp[..., :-1]
    precisions = _ratio(tp, tp + cuts.fp[..., :-1])
    return _ratio(np.vecdot(tp - cuts.tp[..., 1:], precisions), cuts.positives)


class Terms(NamedTuple):
    """What each row adds to a metric, which is the mean over all rows after |adding up within each bin|."""

    values: FloatArray
    """(N,)"""
    bins: NDArray[np.intp] | None = None
    """(N,) never falling with the probability; None where all rows share one bin."""


def ece_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Label minus probability of each row, in one of 15 bins of equal width."""
    p = np.asarray(probabilities, dtype=np.float64)
    return Terms(np.asarray(labels) - p, bin_index(p))


def brier_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Squared distance between probability and label."""
    distances: FloatArray = np.asarray(labels) - np.asarray(probabilities, dtype=np.float64)
    return Terms(distances**2)


def nll_terms(labels: ArrayLike, probabilities: ArrayLike) -> Terms:
    """Negative log-likelihood in nats; probabilities are kept 2.2e-16 away from 0 and 1, as in scikit-learn."""
    edge = np.finfo(np.float64).eps
    p = np.clip(np.asarray(probabilities, dtype=np.float64), edge, 1 - edge)
    return Terms(-np.where(np.asarray(labels) == 1, np.log(p), np.log1p(-p)))


def mean_of_terms(terms: Terms) -> float:
    """The metric that the terms stand for."""
    sums = terms.values.sum() if terms.bins is None else np.bincount(terms.bins, weights=terms.values)
    return float(np.abs(sums).sum() / terms.values.size)


def roc_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve of labels (N,) and probabilities (N,); nan when one class is absent."""
    return float(area_under_roc(all_cuts(labels, probabilities)))


def pr_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Average precision of labels (N,) and probabilities (N,); 0 when there is no positive."""
    return float(average_precision(all_cuts(labels, probabilities)))


def ece(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error of the probability of class 1, over 15 bins of equal width.

    The mean over rows of |observed frequency - mean probability| of the row's bin. Naeini et al. 2015,
    https://doi.org/10.1609/aaai.v29i1.9602. It is above 0 even for perfect probabilities; `ece_band` says by how much.
    """
    return mean_of_terms(ece_terms(labels, probabilities))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared distance between probability and label. Brier 1950."""
    return mean_of_terms(brier_terms(labels, probabilities))


def nll(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood, in nats."""
    return mean_of_terms(nll_terms(labels, probabilities))


def bin_index(probabilities: FloatArray, n_bins: int = ECE_BINS) -> NDArray[np.intp]:
    """Which of `n_bins` equal bins of [0, 1] each probability lies in; the last one holds 1 as well."""
    return np.minimum((probabilities * n_bins).astype(np.intp), n_bins - 1)


class Basis(Enum):
    """What a metric is computed from, and so how its function is called."""

    COUNTS = "counts"
    """function(counts) -> (...,): from the four counts at one cut."""
    CUTS = "cuts"
    """function(cuts) -> (...,): from the counts at every cut."""
    TERMS = "terms"
    """function(labels, probabilities) -> Terms: the metric is the `mean_of_terms` of these."""


@dataclass(frozen=True)
class Metric:
    """One row of the table: how a metric is called, computed and read."""

    title: str
    basis: Basis
    function: Callable[..., Any]
    higher_is_better: bool = True
    lowest: float = 0.0
    """The lower end of its scale."""


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mcc": Metric("MCC", Basis.COUNTS, mcc, lowest=-1.0),
        "accuracy": Metric("Accuracy", Basis.COUNTS, accuracy),
        "precision": Metric("Precision", Basis.COUNTS, precision),
        "recall": Metric("Recall", Basis.COUNTS, recall),
        "f1": Metric("F1", Basis.COUNTS, f1),
        "fnr": Metric("Miss rate (FNR)", Basis.COUNTS, fnr, higher_is_better=False),
        "fpr": Metric("False alarm rate (FPR)", Basis.COUNTS, fpr, higher_is_better=False),
        "roc_auc": Metric("ROC-AUC", Basis.CUTS, area_under_roc),
        "pr_auc": Metric("PR-AUC", Basis.CUTS, average_precision),
        "ece": Metric("ECE", Basis.TERMS, ece_terms, higher_is_better=False),
        "brier": Metric("Brier score", Basis.TERMS, brier_terms, higher_is_better=False),
        "nll": Metric("NLL", Basis.TERMS, nll_terms, higher_is_better=False),
    }
)
"""Name -> metric, in the order in which people read them."""


def count_metrics(counts: Counts) -> dict[str, float]:
    """Every metric of the table that the four counts (numbers) determine."""
    return {name: float(m.function(counts)) for name, m in METRICS.items() if m.basis is Basis.COUNTS}


def all_metrics(labels: ArrayLike, probabilities: ArrayLike, decisions: ArrayLike) -> dict[str, float]:
    """Every metric of the table for labels (N,), probabilities (N,) and the decisions (N,) made from them.

    Raises:
        DataError: empty or mismatched arrays, labels other than 0 and 1, probabilities outside [0, 1].
    """
    truth, p = checked(labels, probabilities)
    counts, cuts = confusion_counts(truth, decisions), all_cuts(truth, p)
    values: dict[Basis, Callable[[Metric], Values]] = {
        Basis.COUNTS: lambda metric: metric.function(counts),
        Basis.CUTS: lambda metric: metric.function(cuts),
        Basis.TERMS: lambda metric: mean_of_terms(metric.function(truth, p)),
    }
    return {name: float(values[metric.basis](metric)) for name, metric in METRICS.items()}


def _ratio(numerator: Any, denominator: Any) -> Values:
    """The numerator over the denominator (at least 0) in float64; 0 where both are 0."""
    quotient: Values = np.divide(numerator, np.maximum(denominator, TINY, dtype=np.float64), dtype=np.float64)
    return quotient

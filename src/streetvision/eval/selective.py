"""Selective prediction: the risk among the predicted rows against the share of rows that are predicted."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from streetvision.eval.counts import BoolArray, Counts, FloatArray, confusion_counts
from streetvision.eval.metrics import accuracy, fnr, fpr
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import wilson_interval
from streetvision.eval.thresholds import decide

RiskKind = Literal["fnr", "fpr", "error"]


@dataclass(frozen=True)
class RiskCoverage:
    """The curve from predicting only the most certain rows to predicting all rows; arrays of shape (K,)."""

    coverage: FloatArray
    """Share of rows predicted, ascending to 1."""
    risk: FloatArray
    """Risk among the predicted rows; 0 if they do not contain the class at risk."""
    low: FloatArray
    """Lower end of the Wilson interval of the risk."""
    high: FloatArray
    """Upper end of the Wilson interval of the risk."""


def risk_coverage(
    predictions: Predictions, *, threshold: float, kind: RiskKind = "error", level: float = 0.95
) -> RiskCoverage:
    """The risk-coverage curve if the rows nearest to the threshold are abstained first.

    Rows at equal distance from the threshold are predicted together. The intervals are based on the number of
    independent units of the class at risk, not on their rows.

    References:
        El-Yaniv and Wiener 2010, JMLR 11:1605.
    """
    labels, p = predictions.labels, predictions.probabilities
    distance = np.abs(p - threshold)
    order = np.argsort(-distance, kind="stable")
    end_of_tie = np.append(np.diff(distance[order]) != 0, True)
    labels, decided = labels[order], decide(p, threshold)[order]
    cells = (labels & decided, ~labels & ~decided, ~labels & decided, labels & ~decided)
    counts = Counts(*(np.cumsum(cell, dtype=np.float64)[end_of_tie] for cell in cells))
    errors, total, at_risk = {
        "fnr": (counts.fn, counts.positives, labels),
        "fpr": (counts.fp, counts.negatives, ~labels),
        "error": (counts.fn + counts.fp, counts.total, np.ones_like(labels)),
    }[kind]
    # The number of units of the class at risk among the first rows: count the first row at risk of each unit.
    rows = np.flatnonzero(at_risk)
    _, first = np.unique(predictions.units.of_row[order][rows], return_index=True)
    first_of_unit = np.zeros(order.size, dtype=bool)
    first_of_unit[rows[first]] = True
    risk, trials = errors / np.maximum(total, 1), np.cumsum(first_of_unit)[end_of_tie]
    low, high = wilson_interval(risk * trials, trials, level=level)
    return RiskCoverage(counts.total / labels.size, risk, low, high)


def selective_metrics(labels: ArrayLike, decisions: ArrayLike, predicted: BoolArray) -> dict[str, float]:
    """Coverage, and FNR, FPR and error among the predicted rows, from labels, decisions and a mask, (N,) each."""
    truth, decided = np.asarray(labels), np.asarray(decisions)
    counts = confusion_counts(truth[predicted], decided[predicted])
    risks = {"fnr": float(fnr(counts)), "fpr": float(fpr(counts)), "error": 1 - float(accuracy(counts))}
    return {"coverage": float(np.mean(predicted)), **risks}

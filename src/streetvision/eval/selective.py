"""What handing over buys: the risk among what is answered, against the share that is answered."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from streetvision.eval.counts import BoolArray, Counts, FloatArray, checked, confusion_counts
from streetvision.eval.metrics import accuracy, fnr, fpr
from streetvision.eval.reliability import wilson_interval
from streetvision.eval.thresholds import decide

RiskKind = Literal["fnr", "fpr", "error"]


@dataclass(frozen=True)
class RiskCoverage:
    """The curve from answering the surest row to answering all; arrays of shape (K,)."""

    coverage: FloatArray
    """Share of the rows answered, rising to 1."""
    risk: FloatArray
    """Among the answered; 0 where the class at risk is not among them."""
    low: FloatArray
    """Lower end of the Wilson interval of the risk."""
    high: FloatArray
    """Upper end of the Wilson interval of the risk."""


def risk_coverage(
    labels: ArrayLike, probabilities: ArrayLike, *, threshold: float, kind: RiskKind = "error", level: float = 0.95
) -> RiskCoverage:
    """Hand over the rows nearest the threshold first, and watch the risk of labels (N,) and probabilities (N,).

    El-Yaniv and Wiener 2010, JMLR 11:1605. Rows that are equally far from the threshold are answered together.

    Raises:
        DataError: unusable arrays, as in `checked`.
    """
    truth, p = checked(labels, probabilities)
    distance = np.abs(p - threshold)
    order = np.argsort(-distance, kind="stable")
    whole = np.append(np.diff(distance[order]) != 0, True)
    truth, decided = truth[order], decide(p, threshold)[order]
    cells = (truth & decided, ~truth & ~decided, ~truth & decided, truth & ~decided)
    counts = Counts(*(np.cumsum(cell, dtype=np.float64)[whole] for cell in cells))
    wrong, of = {
        "fnr": (counts.fn, counts.positives),
        "fpr": (counts.fp, counts.negatives),
        "error": (counts.fn + counts.fp, counts.total),
    }[kind]
    low, high = wilson_interval(wrong, of, level=level)
    return RiskCoverage(counts.total / truth.size, wrong / np.maximum(of, 1), low, high)


def selective_figures(labels: ArrayLike, decisions: ArrayLike, answered: BoolArray) -> dict[str, float]:
    """Coverage, and FNR, FPR and error among the answered of labels (N,), decisions (N,) and a mask (N,)."""
    truth, decided = np.asarray(labels), np.asarray(decisions)
    counts = confusion_counts(truth[answered], decided[answered])
    risks = {"fnr": float(fnr(counts)), "fpr": float(fpr(counts)), "error": 1 - float(accuracy(counts))}
    return {"coverage": float(np.mean(answered)), **risks}

"""What handing over buys: the risk among what is answered, against the share that is answered."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.eval.counts import BoolArray, Counts, FloatArray, checked, confusion_counts
from streetvision.eval.metrics import accuracy, fnr, fpr
from streetvision.eval.reliability import wilson_interval
from streetvision.eval.resampling import units_of
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
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    threshold: float,
    kind: RiskKind = "error",
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> RiskCoverage:
    """Hand over the rows nearest the threshold first, and watch the risk of labels (N,) and probabilities (N,).

    El-Yaniv and Wiener 2010, JMLR 11:1605. Rows that are equally far from the threshold are answered together. With
    `groups` (N,), an interval counts the groups of the class at risk, not their rows.

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
    at_risk = {"fnr": truth, "fpr": ~truth, "error": np.ones_like(truth)}[kind]
    risk, trials = wrong / np.maximum(of, 1), np.cumsum(_first_of_unit(groups, order, at_risk))[whole]
    low, high = wilson_interval(risk * trials, trials, level=level)
    return RiskCoverage(counts.total / truth.size, risk, low, high)


def _first_of_unit(groups: Sequence[Hashable] | None, order: NDArray[np.intp], at_risk: BoolArray) -> BoolArray:
    """Which rows (N,) in this order are the first at risk of their group."""
    rows = np.flatnonzero(at_risk)
    _, first = np.unique(units_of(groups, order.size).of_row[order][rows], return_index=True)
    found = np.zeros(order.size, dtype=bool)
    found[rows[first]] = True
    return found


def selective_figures(labels: ArrayLike, decisions: ArrayLike, answered: BoolArray) -> dict[str, float]:
    """Coverage, and FNR, FPR and error among the answered of labels (N,), decisions (N,) and a mask (N,)."""
    truth, decided = np.asarray(labels), np.asarray(decisions)
    counts = confusion_counts(truth[answered], decided[answered])
    risks = {"fnr": float(fnr(counts)), "fpr": float(fpr(counts)), "error": 1 - float(accuracy(counts))}
    return {"coverage": float(np.mean(answered)), **risks}

"""Multi-objective selection: the Pareto front of candidates, and the preferred point on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.config import PreferenceConfig
from streetvision.eval.counts import FloatArray, confusion_counts, threshold_counts
from streetvision.eval.metrics import ece, fnr, mcc, nll
from streetvision.eval.thresholds import decide

OBJECTIVES = ("nll", "ece", "mcc_loss", "fnr")
"""Fields of FrontPoint that are minimized."""


@dataclass(frozen=True)
class Candidate:
    """An ensemble that may be selected."""

    weights: Mapping[str, float]
    """Calibrator -> weight."""
    probabilities: FloatArray
    """(N,) out-of-fold probabilities of class 1."""


@dataclass(frozen=True)
class FrontPoint:
    """The objectives of one candidate."""

    weights: Mapping[str, float]
    """Calibrator -> weight."""
    nll: float
    ece: float
    mcc_loss: float
    """1 - MCC at the best threshold of each fold."""
    fnr: float
    """False negative rate at these thresholds."""
    on_front: bool = False
    """No other candidate is at least as good in all objectives and better in one."""
    selected: bool = False
    """Selected by the preference."""

    @property
    def objectives(self) -> FloatArray:
        """(4,) in the order of OBJECTIVES."""
        return np.array([getattr(self, name) for name in OBJECTIVES])


def best_mcc_and_fnr(
    labels: NDArray[np.int64], probabilities: FloatArray, fold_of_row: NDArray[np.int64]
) -> tuple[float, float]:
    """Return MCC and FNR of all rows (N,), decided at the threshold of each fold with the highest MCC there.

    Every fold has its own calibrator. A single threshold would lower the MCC of calibrators that keep the order of the
    scores, by the differences between folds.
    """
    decisions = np.zeros(len(labels), dtype=np.bool_)
    for fold in np.unique(fold_of_row):
        rows = fold_of_row == fold
        if labels[rows].any():  # of negatives alone, every decision is negative
            thresholds = threshold_counts(labels[rows], probabilities[rows])
            best = int(np.argmax(np.asarray(mcc(thresholds.counts()))))
            decisions[rows] = decide(probabilities[rows], np.append(thresholds.scores, np.inf)[best])
    counts = confusion_counts(labels, decisions)
    return float(mcc(counts)), float(fnr(counts))


def pareto_front(
    candidates: Sequence[Candidate], labels: NDArray[np.int64], fold_of_row: NDArray[np.int64]
) -> tuple[FrontPoint, ...]:
    """Return the objectives of every candidate on labels and folds (N,); `on_front` marks the non-dominated ones."""
    points = []
    for candidate in candidates:
        best_mcc, fnr_there = best_mcc_and_fnr(labels, candidate.probabilities, fold_of_row)
        points.append(
            FrontPoint(
                weights=candidate.weights,
                nll=nll(labels, candidate.probabilities),
                ece=ece(labels, candidate.probabilities),
                mcc_loss=1 - best_mcc,
                fnr=fnr_there,
            )
        )
    values = np.array([point.objectives for point in points])
    # Quadratic in the number of candidates, which is a few hundred.
    dominated = [bool(np.any(np.all(values <= v, axis=1) & np.any(values < v, axis=1))) for v in values]
    return tuple(replace(point, on_front=not beaten) for point, beaten in zip(points, dominated, strict=True))


def select_preferred_point(points: Sequence[FrontPoint], preference: PreferenceConfig) -> FrontPoint:
    """Return the point of the front with the lowest weighted sum of objectives, each scaled to [0, 1] on the front."""
    front = [point for point in points if point.on_front]
    values = np.array([point.objectives for point in front])
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    weights = np.array([getattr(preference, name) for name in OBJECTIVES])
    return front[int(np.argmin(scaled @ weights))]


def mark_selected(points: Sequence[FrontPoint], weights: Mapping[str, float]) -> tuple[FrontPoint, ...]:
    """Return the points, with `selected` set for the one with `weights`."""
    return tuple(replace(point, selected=dict(point.weights) == dict(weights)) for point in points)


def front_csv(points: Sequence[FrontPoint]) -> str:
    """Return the points as CSV, the front first, sorted by NLL."""
    ordered = sorted(points, key=lambda point: (not point.on_front, point.nll))
    lines = [",".join(("weights", *OBJECTIVES, "on_front", "selected"))]
    for point in ordered:
        weights = " ".join(f"{name}={weight:.3f}" for name, weight in point.weights.items())
        objectives = (repr(float(value)) for value in point.objectives)
        lines.append(",".join((weights, *objectives, str(point.on_front).lower(), str(point.selected).lower())))
    return "\n".join(lines) + "\n"

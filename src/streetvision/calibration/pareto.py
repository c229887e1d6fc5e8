"""Calibration with several aims at once: what no other candidate beats in every aim, and one choice among that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.config import PreferenceConfig
from streetvision.eval.counts import FloatArray, all_cuts
from streetvision.eval.metrics import ece, fnr, mcc, nll

OBJECTIVES = ("nll", "ece", "mcc_loss", "fnr")
"""Each is better when lower."""

Tried = tuple[Mapping[str, float], NDArray[np.int64], FloatArray]
"""The weights of a candidate, the labels (N,) and its out-of-fold probabilities (N,)."""


@dataclass(frozen=True)
class FrontPoint:
    """One candidate and its objectives."""

    weights: Mapping[str, float]
    """Calibrator -> weight."""
    nll: float
    ece: float
    mcc_loss: float
    """1 - MCC at the best cut."""
    fnr: float
    """Miss rate at that cut."""
    on_front: bool = False
    """No other candidate is as good in all objectives and better in one."""
    chosen: bool = False
    """The preference picked it."""

    @property
    def objectives(self) -> FloatArray:
        """(4,) in the order of OBJECTIVES."""
        return np.array([getattr(self, name) for name in OBJECTIVES])


def pareto_front(tried: Sequence[Tried]) -> tuple[FrontPoint, ...]:
    """Every candidate with its objectives, those that nothing dominates mark_selected."""
    points = [_point(*one) for one in tried]
    values = np.array([point.objectives for point in points])
    return tuple(replace(p, on_front=not _dominated(v, values)) for p, v in zip(points, values, strict=True))


def select_preferred_point(points: Sequence[FrontPoint], preference: PreferenceConfig) -> FrontPoint:
    """The point of the front with the lowest weighted sum of objectives, each scaled to [0, 1] over the front."""
    front = [point for point in points if point.on_front]
    values = np.array([point.objectives for point in front])
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    weights = np.array([getattr(preference, name) for name in OBJECTIVES])
    return front[int(np.argmin(scaled @ weights))]


def mark_selected(points: Sequence[FrontPoint], chosen: Mapping[str, float]) -> tuple[FrontPoint, ...]:
    """The points, the one with the chosen weights mark_selected."""
    return tuple(replace(point, chosen=dict(point.weights) == dict(chosen)) for point in points)


def front_csv(points: Sequence[FrontPoint]) -> str:
    """The points as CSV: weights, objectives, on_front and chosen; the front first, by NLL."""
    ordered = sorted(points, key=lambda point: (not point.on_front, point.nll))
    lines = [",".join(("weights", *OBJECTIVES, "on_front", "chosen"))]
    for point in ordered:
        weights = " ".join(f"{name}={weight:.3f}" for name, weight in point.weights.items())
        figures = (repr(float(value)) for value in point.objectives)
        lines.append(",".join((weights, *figures, str(point.on_front).lower(), str(point.chosen).lower())))
    return "\n".join(lines) + "\n"


def _point(weights: Mapping[str, float], labels: NDArray[np.int64], probabilities: FloatArray) -> FrontPoint:
    counts = all_cuts(labels, probabilities).counts()
    at_cuts = np.asarray(mcc(counts))
    peak = int(np.argmax(at_cuts))
    return FrontPoint(
        weights=weights,
        nll=nll(labels, probabilities),
        ece=ece(labels, probabilities),
        mcc_loss=1 - float(at_cuts[peak]),
        fnr=float(np.asarray(fnr(counts))[peak]),
    )


def _dominated(value: FloatArray, values: FloatArray) -> bool:
    return bool(np.any(np.all(values <= value, axis=1) & np.any(values < value, axis=1)))

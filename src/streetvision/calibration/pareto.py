"""Multi-objective selection: the Pareto front of candidates, and the preferred point on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.config import PreferenceConfig
from streetvision.eval.counts import FloatArray, threshold_counts
from streetvision.eval.metrics import ece, fnr, mcc, nll

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
    """1 - MCC at the best threshold."""
    fnr: float
    """False negative rate at that threshold."""
    on_front: bool = False
    """No other candidate is at least as good in all objectives and better in one."""
    selected: bool = False
    """Selected by the preference."""

    @property
    def objectives(self) -> FloatArray:
        """(4,) in the order of OBJECTIVES."""
        return np.array([getattr(self, name) for name in OBJECTIVES])


def best_mcc_and_fnr(labels: NDArray[np.int64], probabilities: FloatArray) -> tuple[float, float]:
    """Return the highest MCC over all thresholds, and the FNR at that threshold."""
    counts = threshold_counts(labels, probabilities).counts()
    mcc_values = np.asarray(mcc(counts))
    best = int(np.argmax(mcc_values))
    return float(mcc_values[best]), float(np.asarray(fnr(counts))[best])


def pareto_front(candidates: Sequence[Candidate], labels: NDArray[np.int64]) -> tuple[FrontPoint, ...]:
    """Return the objectives of every candidate on labels (N,); `on_front` marks the non-dominated ones."""
    points = []
    for candidate in candidates:
        best_mcc, fnr_there = best_mcc_and_fnr(labels, candidate.probabilities)
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

"""The table of calibrators, and ensembles of them."""

import json
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, JsonValue, ValidationError, model_validator

from streetvision.calibration.base import Calibrator, FittedCalibrator, invalid_state
from streetvision.calibration.config import ENSEMBLE
from streetvision.calibration.nonparametric import HistogramCalibrator, IsotonicCalibrator, SmoothIsotonicCalibrator
from streetvision.calibration.parametric import (
    BetaCalibrator,
    PlattCalibrator,
    SplineCalibrator,
    TemperatureCalibrator,
    Uncalibrated,
)
from streetvision.contracts.errors import ArtifactError, unknown_name
from streetvision.contracts.policies import Artifact, CalibratorState, Probability
from streetvision.eval.counts import FloatArray

CALIBRATORS: dict[str, type[Calibrator]] = {
    "none": Uncalibrated,
    "temperature": TemperatureCalibrator,
    "platt": PlattCalibrator,
    "beta": BetaCalibrator,
    "isotonic": IsotonicCalibrator,
    "smooth_isotonic": SmoothIsotonicCalibrator,
    "histogram": HistogramCalibrator,
    "spline": SplineCalibrator,
}

WEIGHT_SUM_TOLERANCE = 1e-9


class Member(Artifact):
    """One calibrator of an ensemble and its weight."""

    calibrator: CalibratorState
    weight: Probability


class EnsembleState(Artifact):
    """The members of an ensemble. Their weights sum to 1."""

    members: tuple[Member, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        total = sum(member.weight for member in self.members)
        if abs(total - 1) > WEIGHT_SUM_TOLERANCE:
            raise ValueError(f"the weights must sum to 1, got {total}")
        return self


class Ensemble:
    """A convex combination of fitted calibrators. Like its members, it is monotone and in [0, 1]."""

    def __init__(self, members: dict[str, FittedCalibrator], weights: dict[str, float]) -> None:
        self.members, self.weights = members, weights

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return the weighted mean of the members' probabilities of class 1, (N,), of logits (N, 2)."""
        parts = [self.weights[name] * member.probabilities(logits) for name, member in self.members.items()]
        return np.asarray(np.clip(np.sum(parts, axis=0), 0.0, 1.0))

    def state(self) -> dict[str, JsonValue]:
        """Return the name, state and weight of every member as JSON."""
        members = tuple(
            Member(calibrator=CalibratorState(name=name, state=member.state()), weight=self.weights[name])
            for name, member in self.members.items()
        )
        return EnsembleState(members=members).model_dump(mode="json")

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """Return the ensemble with the members of `state()`; raises ArtifactError for an invalid state."""
        try:
            members = EnsembleState.model_validate_json(json.dumps(state), strict=True).members
        except ValidationError as error:
            raise invalid_state(ENSEMBLE, error) from error
        by_name = {member.calibrator.name: member for member in members}
        if len(by_name) < len(members):
            raise ArtifactError("calibrator state: ensemble.members: duplicate calibrator")
        calibrators: dict[str, FittedCalibrator] = {
            name: _calibrator_class(name).from_state(member.calibrator.state) for name, member in by_name.items()
        }
        return cls(calibrators, {name: member.weight for name, member in by_name.items()})


def make_calibrator(name: str) -> Calibrator:
    """Return a new calibrator by its name in CALIBRATORS."""
    return _calibrator_class(name)()


def restore_calibrator(saved: CalibratorState) -> FittedCalibrator:
    """Return the fitted calibrator or ensemble that is saved in a policy."""
    if saved.name == ENSEMBLE:
        return Ensemble.from_state(saved.state)
    return _calibrator_class(saved.name).from_state(saved.state)


def _calibrator_class(name: str) -> type[Calibrator]:
    if name not in CALIBRATORS:
        raise unknown_name("calibrator", name, CALIBRATORS)
    return CALIBRATORS[name]

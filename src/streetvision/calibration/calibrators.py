"""Calibrators: from logits to probabilities that mean what they say. One table, one contract."""

import json
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, JsonValue, ValidationError, model_validator

from streetvision.calibration.base import Calibrator, FittedCalibrator
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

SUMS_TO_ONE = 1e-9


class Member(Artifact):
    """One calibrator of an ensemble."""

    calibrator: CalibratorState
    weight: Probability


class EnsembleState(Artifact):
    """The members of an ensemble, whose weights sum to 1."""

    members: tuple[Member, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _is_convex(self) -> Self:
        total = sum(member.weight for member in self.members)
        if abs(total - 1) > SUMS_TO_ONE:
            raise ValueError(f"the weights must sum to 1, not {total}")
        return self


class Ensemble:
    """A convex combination of the probabilities of fitted calibrators: monotone and in [0, 1], as they are."""

    def __init__(self, members: dict[str, FittedCalibrator], weights: dict[str, float]) -> None:
        self.members, self.weights = members, weights

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """The weighted mean of the members' probabilities of class 1 (N,) for logits (N, 2)."""
        parts = [self.weights[name] * member.probabilities(logits) for name, member in self.members.items()]
        return np.asarray(np.clip(np.sum(parts, axis=0), 0.0, 1.0))

    def state(self) -> dict[str, JsonValue]:
        """Every member's name, state and weight, as JSON."""
        members = tuple(
            Member(calibrator=CalibratorState(name=name, state=member.state()), weight=self.weights[name])
            for name, member in self.members.items()
        )
        return EnsembleState(members=members).model_dump(mode="json")

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """The ensemble that `state` came from; raises ArtifactError for anything else."""
        try:
            members = EnsembleState.model_validate_json(json.dumps(state), strict=True).members
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, (ENSEMBLE, *first["loc"])))
            raise ArtifactError(f"calibrator state: {field}: {first['msg']}") from error
        saved = {member.calibrator.name: member for member in members}
        if len(saved) < len(members):
            raise ArtifactError("calibrator state: ensemble.members: a calibrator is named twice")
        fitted: dict[str, FittedCalibrator] = {
            name: _class_of(name).from_state(member.calibrator.state) for name, member in saved.items()
        }
        return cls(fitted, {name: member.weight for name, member in saved.items()})


def make_calibrator(name: str) -> Calibrator:
    """A new calibrator by its name in CALIBRATORS."""
    return _class_of(name)()


def restore_calibrator(saved: CalibratorState) -> FittedCalibrator:
    """The fitted calibrator, or ensemble of them, that a policy carries."""
    if saved.name == ENSEMBLE:
        return Ensemble.from_state(saved.state)
    return _class_of(saved.name).from_state(saved.state)


def _class_of(name: str) -> type[Calibrator]:
    if name not in CALIBRATORS:
        raise unknown_name("calibrator", name, CALIBRATORS)
    return CALIBRATORS[name]

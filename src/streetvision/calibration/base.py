"""The interface of calibrators: monotone maps from the margin of two logits to a probability.

Shapes: N rows. The margin is the logit of class 1 minus the logit of class 0.
"""

import json
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import JsonValue, ValidationError

from streetvision.contracts.errors import ArtifactError, DataError, NotFittedError
from streetvision.contracts.policies import Artifact
from streetvision.eval.counts import BoolArray, FloatArray, checked_labels, real_array

Learned = TypeVar("Learned", bound=Artifact)
LARGEST_MARGIN = 1e100
"""The squares of larger margins overflow. Those of float32 logits are below 1e39."""


class FittedCalibrator(Protocol):
    """A calibrator, or an ensemble of calibrators, after fitting."""

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return the calibrated probabilities of class 1, (N,), of logits (N, 2)."""
        ...

    def state(self) -> dict[str, JsonValue]:
        """Return all learned parameters as JSON."""
        ...


class Calibrator(FittedCalibrator, Protocol):
    """A calibrator that can be fitted. Its probabilities never decrease with the margin.

    Raises:
        NotFittedError: used before `fit`.
        DataError: logits that `margins` refuses.
    """

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Fit on logits (N, 2) and labels (N,) that the model was not trained on."""
        ...

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """Return the calibrator with the parameters of `state()`; raises ArtifactError for an invalid state."""
        ...


class MarginCalibrator(ABC, Generic[Learned]):
    """Base class of calibrators: input checks, order of calls, and state. Subclasses implement `learn` and `apply`."""

    name: ClassVar[str]
    """Name in CALIBRATORS."""
    learned_type: type[Learned]
    """Model of the learned parameters. It must be unchanged after a round trip through JSON."""

    def __init__(self) -> None:
        self._learned: Learned | None = None

    @abstractmethod
    def learn(self, margin: FloatArray, truth: BoolArray) -> Learned:
        """Return parameters for margins (N,) and labels (N,), N >= 1. Ties and a single class are allowed."""

    @abstractmethod
    def apply(self, learned: Learned, margin: FloatArray) -> FloatArray:
        """Return the probabilities (N,) of margins (N,)."""

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Fit on logits (N, 2) and labels (N,) that the model was not trained on."""
        margin, truth = margins(logits), checked_labels(labels)
        if margin.shape != truth.shape:
            raise DataError(
                f"got {margin.size} rows of logits for {truth.size} labels", "give one row of logits per label"
            )
        self._learned = self.learn(margin, truth)
        return self

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return the calibrated probabilities of class 1, (N,), of logits (N, 2)."""
        return np.clip(self.apply(self._fitted, margins(logits)), 0.0, 1.0)

    def state(self) -> dict[str, JsonValue]:
        """Return all learned parameters as JSON."""
        return self._fitted.model_dump(mode="json")

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """Return the calibrator with the parameters of `state()`; raises ArtifactError for an invalid state."""
        calibrator = cls()
        try:
            # Strict validation of JSON text: no string is converted to a number.
            calibrator._learned = cls.learned_type.model_validate_json(json.dumps(state), strict=True)
        except ValidationError as error:
            raise invalid_state(cls.name, error) from error
        return calibrator

    @property
    def _fitted(self) -> Learned:
        if self._learned is None:
            raise NotFittedError(f"the {self.name} calibrator is not fitted", "call fit first")
        return self._learned


def invalid_state(name: str, error: ValidationError) -> ArtifactError:
    """Return the error for a calibrator state, with its first invalid field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, (name, *first["loc"])))
    return ArtifactError(f"calibrator state: {field}: {first['msg']}")


def margins(logits: ArrayLike) -> FloatArray:
    """Return the logit of class 1 minus the logit of class 0: (N, 2) -> (N,) float64.

    Raises:
        DataError: the logits are not numbers, not finite or not (N, 2), or a margin is above LARGEST_MARGIN.
    """
    pairs = real_array(logits, "logits").astype(np.float64, copy=False)
    hint = "give the raw two-class logits of the model"
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DataError(f"logits must have shape (N, 2); got {pairs.shape}", hint)
    with np.errstate(over="ignore", invalid="ignore"):
        margin: FloatArray = pairs[:, 1] - pairs[:, 0]
    allowed = np.abs(margin) <= LARGEST_MARGIN  # NaN is not
    if not allowed.all():
        n_invalid = int((~allowed).sum())
        raise DataError(
            f"logits must be finite and differ by at most {LARGEST_MARGIN:g}; {n_invalid} of {len(margin)} rows do not",
            hint,
        )
    return margin

"""What every calibrator is: fitted once, a map from the margin of two logits to a probability that never falls.

Legend: N rows; the margin is the logit of class 1 less the logit of class 0.
"""

import json
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import JsonValue, ValidationError

from streetvision.contracts.errors import ArtifactError, DataError, NotFittedError
from streetvision.contracts.policies import Artifact
from streetvision.eval.counts import BoolArray, FloatArray, checked_labels

Learned = TypeVar("Learned", bound=Artifact)


class FittedCalibrator(Protocol):
    """What can be asked of a calibrator, or of an ensemble of them, once it is fitted."""

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Calibrated probabilities of class 1 (N,)."""
        ...

    def state(self) -> dict[str, JsonValue]:
        """Everything learned, as JSON."""
        ...


class Calibrator(FittedCalibrator, Protocol):
    """Fitted on logits (N, 2) and labels (N,); gives the probability of class 1, (N,), never falling with the logit.

    Using it before `fit` raises NotFittedError. Logits that are not finite or not (N, 2) raise DataError.
    """

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Learn from scores that the model was not trained on."""
        ...

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """The calibrator that `state` came from; raises ArtifactError for anything else."""
        ...


class MarginCalibrator(ABC, Generic[Learned]):
    """The common half of every calibrator: checks, order of calls and state; a child only learns and applies."""

    name: ClassVar[str]
    """Its name in CALIBRATORS."""
    learned_type: type[Learned]
    """What fitting yields: numbers that pass to JSON and back without loss."""

    def __init__(self) -> None:
        self._learned: Learned | None = None

    @abstractmethod
    def learn(self, margin: FloatArray, truth: BoolArray) -> Learned:
        """What margins (N,) and labels (N,) say; one class alone and ties are allowed, N is at least 1."""

    @abstractmethod
    def apply(self, learned: Learned, margin: FloatArray) -> FloatArray:
        """Probabilities (N,) of margins (N,)."""

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Learn from logits (N, 2) and labels (N,) that the model was not trained on."""
        margin, truth = margins(logits), checked_labels(labels)
        if margin.shape != truth.shape:
            raise DataError(f"expected a row of logits for each of {truth.size} labels, came {margin.size}")
        self._learned = self.learn(margin, truth)
        return self

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Calibrated probabilities of class 1 (N,) for logits (N, 2)."""
        return np.clip(self.apply(self._fitted, margins(logits)), 0.0, 1.0)

    def state(self) -> dict[str, JsonValue]:
        """Everything learned, as JSON."""
        return self._fitted.model_dump(mode="json")

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """The calibrator that `state` came from; raises ArtifactError that names the first wrong field."""
        calibrator = cls()
        try:
            calibrator._learned = cls.learned_type.model_validate_json(json.dumps(state), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, (cls.name, *first["loc"])))
            raise ArtifactError(f"calibrator state: {field}: {first['msg']}") from error
        return calibrator

    @property
    def _fitted(self) -> Learned:
        if self._learned is None:
            raise NotFittedError(f"the {self.name} calibrator is used before it was fitted", "call fit first")
        return self._learned


def margins(logits: ArrayLike) -> FloatArray:
    """Logit of class 1 less logit of class 0: (N, 2) -> (N,) float64; raises DataError unless finite and (N, 2)."""
    pairs = np.asarray(logits, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        bad = int((~np.isfinite(pairs)).sum())
        raise DataError(
            f"expected finite logits (N, 2), came {pairs.shape} with {bad} values not finite",
            "give the raw two-class output of the model",
        )
    return pairs[:, 1] - pairs[:, 0]

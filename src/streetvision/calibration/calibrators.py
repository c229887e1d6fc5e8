"""Calibrators: from logits to probabilities that mean what they say. One table, one contract."""

from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import JsonValue
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from streetvision.contracts.errors import ArtifactError, DataError, NotFittedError, unknown_name
from streetvision.contracts.policies import CalibratorState
from streetvision.eval.counts import checked_labels
from streetvision.eval.metrics import positive_probability

FloatArray = NDArray[np.float64]

LOG_TEMPERATURE_BOUNDS = (-5.0, 5.0)


class Calibrator(Protocol):
    """Fitted on logits (N, 2) and labels (N,); gives the probability of class 1, (N,), never falling with the logit.

    Using it before `fit` raises NotFittedError.
    """

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Learn from scores that the model was not trained on."""
        ...

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Calibrated probabilities of class 1 (N,)."""
        ...

    def state(self) -> dict[str, JsonValue]:
        """Everything learned, as JSON."""
        ...

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """The calibrator that `state` came from."""
        ...


class TemperatureCalibrator:
    """Logits over one temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2), by NLL over log T, bounded.

    The temperature stays within exp(-5) and exp(5), so separable data give a finite answer.
    """

    def __init__(self) -> None:
        self.temperature: float | None = None

    def fit(self, logits: ArrayLike, labels: ArrayLike) -> Self:
        """Find the temperature with the lowest NLL; one class alone is allowed and ends at a bound."""
        margin, truth = margins(logits), checked_labels(labels)
        if margin.shape != truth.shape or not np.isfinite(margin).all():
            raise DataError(f"expected {truth.size} rows of finite logits to calibrate, came {margin.shape}")
        signed = np.where(truth, margin, -margin)

        def nll(log_temperature: float) -> float:
            return -float(log_expit(signed * np.exp(-log_temperature)).mean())

        found = minimize_scalar(nll, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6})
        self.temperature = float(np.exp(found.x))
        return self

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Sigmoid of the margin over the temperature (N,)."""
        if self.temperature is None:
            raise NotFittedError("the temperature calibrator is used before it was fitted", "call fit first")
        return positive_probability(np.asarray(logits, dtype=np.float64) / self.temperature)

    def state(self) -> dict[str, JsonValue]:
        """The temperature."""
        if self.temperature is None:
            raise NotFittedError("the temperature calibrator has no state before it was fitted", "call fit first")
        return {"temperature": self.temperature}

    @classmethod
    def from_state(cls, state: dict[str, JsonValue]) -> Self:
        """Restore a temperature; raises ArtifactError unless it is a positive number."""
        value = state.get("temperature")
        if set(state) != {"temperature"} or not isinstance(value, float) or not 0.0 < value < np.inf:
            raise ArtifactError(f"calibrator state: expected one positive number 'temperature', came {state}")
        calibrator = cls()
        calibrator.temperature = value
        return calibrator


CALIBRATORS: dict[str, type[Calibrator]] = {
    "temperature": TemperatureCalibrator,
}


def make_calibrator(name: str) -> Calibrator:
    """A new calibrator by its name in CALIBRATORS."""
    if name not in CALIBRATORS:
        raise unknown_name("calibrator", name, CALIBRATORS)
    return CALIBRATORS[name]()


def restore_calibrator(saved: CalibratorState) -> Calibrator:
    """The fitted calibrator that a policy carries."""
    if saved.name not in CALIBRATORS:
        raise unknown_name("calibrator", saved.name, CALIBRATORS)
    return CALIBRATORS[saved.name].from_state(saved.state)


def margins(logits: ArrayLike) -> FloatArray:
    """Logit of class 1 less logit of class 0: (N, 2) -> (N,) float64."""
    array = np.asarray(logits, dtype=np.float64)
    return array[:, 1] - array[:, 0]

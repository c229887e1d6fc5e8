"""Parametric calibrators: none, temperature, Platt, beta, and a monotone spline.

Platt, beta and spline are logistic regressions with nonnegative coefficients on features that increase with the margin,
so they are monotone. All use Platt's smoothed targets: without them, separable scores would be sharpened without limit.
"""

from typing import Annotated

import numpy as np
import scipy  # a part of it is loaded at its first use: a prediction needs few of them
from pydantic import Field
from scipy.special import expit, log_expit

from streetvision.calibration.base import MarginCalibrator
from streetvision.contracts.policies import Artifact
from streetvision.eval.counts import BoolArray, FloatArray

LOG_TEMPERATURE_BOUNDS = (-5.0, 5.0)
CONSTANT_TOLERANCE = 1e-9
"""A feature is constant if its standard deviation is smaller than this share of its mean."""
SPLINE_DEGREE = 2
SPLINE_SEGMENTS = 6
SPLINE_PENALTY = 0.5
"""Weight of the squared spline coefficients in the loss; it shrinks the spline towards the line of Platt scaling."""

NonNegative = Annotated[float, Field(ge=0)]


class NoParameters(Artifact):
    """The softmax has no parameters."""


class TemperatureParameters(Artifact):
    """sigmoid(margin / temperature)."""

    temperature: float = Field(gt=0)


class PlattParameters(Artifact):
    """sigmoid(slope * margin + intercept)."""

    slope: NonNegative
    intercept: float


class BetaParameters(Artifact):
    """sigmoid(a log p - b log(1 - p) + c), where p is the sigmoid of the margin."""

    a: NonNegative
    b: NonNegative
    c: float


class SplineParameters(Artifact):
    """sigmoid(intercept + slope * margin + sum of increasing splines)."""

    knots: tuple[float, ...]
    """Increasing knots of the margin, ends included; fewer than two if all margins are equal."""
    slope: NonNegative
    coefficients: tuple[NonNegative, ...]
    """Coefficient of each increasing spline."""
    intercept: float


class Uncalibrated(MarginCalibrator[NoParameters]):
    """The softmax without calibration, as the baseline."""

    name = "none"
    learned_type = NoParameters

    def learn(self, margin: FloatArray, truth: BoolArray) -> NoParameters:  # noqa: ARG002
        """Return no parameters."""
        return NoParameters()

    def apply(self, learned: NoParameters, margin: FloatArray) -> FloatArray:  # noqa: ARG002
        """Return the sigmoid of the margin."""
        return np.asarray(expit(margin))


class TemperatureCalibrator(MarginCalibrator[TemperatureParameters]):
    """Temperature scaling, with the temperature between exp(-5) and exp(5).

    References:
        Guo et al. 2017, arXiv 1706.04599, section 4.2; here with Platt's smoothed targets.
    """

    name = "temperature"
    learned_type = TemperatureParameters

    def learn(self, margin: FloatArray, truth: BoolArray) -> TemperatureParameters:
        """Return the temperature with the lowest cross-entropy."""
        targets = smoothed_targets(truth)

        def loss(log_temperature: float) -> float:
            scaled = margin * np.exp(-log_temperature)
            return -float((targets * log_expit(scaled) + (1 - targets) * log_expit(-scaled)).mean())

        result = scipy.optimize.minimize_scalar(
            loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6}
        )
        return TemperatureParameters(temperature=float(np.exp(result.x)))

    def apply(self, learned: TemperatureParameters, margin: FloatArray) -> FloatArray:
        """Return the sigmoid of the scaled margin."""
        return np.asarray(expit(margin / learned.temperature))


class PlattCalibrator(MarginCalibrator[PlattParameters]):
    """Platt scaling: a sigmoid of a linear function of the margin.

    References:
        Platt 1999; Lin, Lin and Weng 2007, https://doi.org/10.1007/s10994-007-5018-6.
    """

    name = "platt"
    learned_type = PlattParameters

    def learn(self, margin: FloatArray, truth: BoolArray) -> PlattParameters:
        """Return the slope and the intercept with the lowest cross-entropy."""
        slope, intercept = fit_nonnegative_logistic(margin[:, None], smoothed_targets(truth))
        return PlattParameters(slope=slope, intercept=intercept)

    def apply(self, learned: PlattParameters, margin: FloatArray) -> FloatArray:
        """Return the sigmoid of the linear function."""
        return np.asarray(expit(learned.slope * margin + learned.intercept))


class BetaCalibrator(MarginCalibrator[BetaParameters]):
    """Beta calibration with three parameters.

    References:
        Kull, Silva Filho and Flach 2017, PMLR 54:623; here with Platt's smoothed targets.
    """

    name = "beta"
    learned_type = BetaParameters

    def learn(self, margin: FloatArray, truth: BoolArray) -> BetaParameters:
        """Return a, b and c with the lowest cross-entropy."""
        a, b, c = fit_nonnegative_logistic(_beta_features(margin), smoothed_targets(truth))
        return BetaParameters(a=a, b=b, c=c)

    def apply(self, learned: BetaParameters, margin: FloatArray) -> FloatArray:
        """Return the beta map of the sigmoid of the margin."""
        return np.asarray(expit(_beta_features(margin) @ [learned.a, learned.b] + learned.c))


class SplineCalibrator(MarginCalibrator[SplineParameters]):
    """Platt scaling plus monotone splines: integrated B-splines with nonnegative coefficients.

    The knots are quantiles of the distinct margins.

    References:
        Ramsay 1988, https://doi.org/10.1214/ss/1177012761.
    """

    name = "spline"
    learned_type = SplineParameters

    def learn(self, margin: FloatArray, truth: BoolArray) -> SplineParameters:
        """Return the parameters with the lowest penalized cross-entropy."""
        knots = np.unique(np.quantile(np.unique(margin), np.linspace(0, 1, SPLINE_SEGMENTS + 1)))
        features = np.column_stack([margin, _increasing_splines(margin, knots)])
        penalty = np.array([0.0, *[SPLINE_PENALTY] * (features.shape[1] - 1)])
        slope, *coefficients, intercept = fit_nonnegative_logistic(features, smoothed_targets(truth), penalty)
        return SplineParameters(
            knots=tuple(knots.tolist()), slope=slope, coefficients=tuple(coefficients), intercept=intercept
        )

    def apply(self, learned: SplineParameters, margin: FloatArray) -> FloatArray:
        """Return the sigmoid of the linear function plus the splines."""
        splines = _increasing_splines(margin, np.array(learned.knots)) @ np.array(learned.coefficients)
        return np.asarray(expit(learned.slope * margin + splines + learned.intercept))


def smoothed_targets(truth: BoolArray) -> FloatArray:
    """Return Platt's targets (N,): (N1 + 1) / (N1 + 2) for the N1 positives, 1 / (N0 + 2) for the N0 negatives."""
    positives = int(truth.sum())
    return np.where(truth, (positives + 1) / (positives + 2), 1 / (truth.size - positives + 2))


def fit_nonnegative_logistic(
    features: FloatArray, targets: FloatArray, penalty: FloatArray | None = None
) -> list[float]:
    """Fit a logistic regression with nonnegative coefficients by L-BFGS-B. The problem is convex.

    scikit-learn's LogisticRegression has neither sign constraints nor soft targets.

    Args:
        features: (N, K). A feature that is constant except for rounding gets the coefficient 0.
        targets: (N,) in [0, 1].
        penalty: (K,) weights of the squared coefficients of the standardized features.

    Returns:
        K coefficients and the intercept, with the lowest summed cross-entropy.
    """
    deviation, mean = features.std(axis=0), features.mean(axis=0)
    varies = deviation > CONSTANT_TOLERANCE * np.abs(mean)
    # Standardized features make the scale of the penalty and of the stopping criteria meaningful.
    scale = np.where(varies, deviation, 1.0)
    x = np.where(varies, (features - mean) / scale, 0.0)
    weights = np.zeros(x.shape[1]) if penalty is None else penalty

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        z = x @ theta[:-1] + theta[-1]
        error = expit(z) - targets
        gradient = np.append(x.T @ error + 2 * weights * theta[:-1], error.sum())
        value = np.logaddexp(0, z).sum() - targets @ z + weights @ theta[:-1] ** 2
        return value / len(x), gradient / len(x)

    start = np.zeros(x.shape[1] + 1)
    bounds = [(0, None)] * x.shape[1] + [(None, None)]
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    theta = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    coefficients = np.maximum(theta[:-1], 0.0) / scale
    return [*coefficients.tolist(), float(theta[-1] - coefficients @ mean)]


def _beta_features(margin: FloatArray) -> FloatArray:
    return np.column_stack([log_expit(margin), -log_expit(-margin)])


def _increasing_splines(margin: FloatArray, knots: FloatArray) -> FloatArray:
    """Return the integrated B-splines (N, K), each increasing from 0 to 1; K = 0 for fewer than two knots."""
    if knots.size < 2:
        return np.zeros((margin.size, 0))
    padded = np.concatenate([[knots[0]] * SPLINE_DEGREE, knots, [knots[-1]] * SPLINE_DEGREE])
    inside = np.clip(margin, knots[0], knots[-1])
    basis = scipy.interpolate.BSpline.design_matrix(inside, padded, SPLINE_DEGREE).toarray()
    # An integral of B-splines is a partial sum of B-splines from the right.
    return np.asarray(np.cumsum(basis[:, :0:-1], axis=1)[:, ::-1])

"""Calibrators of a few numbers each: none, temperature, Platt, Beta, and the monotone spline that widens Platt.

All but the first two are one logistic regression with coefficients that cannot be negative, on features that rise with
the margin; that is what makes them monotone. All aim at Platt's smoothed targets: scores that happen to be separable
would otherwise be sharpened without end.
"""

from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.interpolate import BSpline
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit

from streetvision.calibration.base import MarginCalibrator
from streetvision.contracts.policies import Artifact
from streetvision.eval.counts import BoolArray, FloatArray

LOG_TEMPERATURE_BOUNDS = (-5.0, 5.0)
SAME = 1e-9
"""Numbers whose spread is smaller than this share of their mean differ by rounding only."""
SPLINE_DEGREE = 2
SPLINE_SEGMENTS = 6
SPLINE_PENALTY = 0.5
"""Of the squared spline coefficients against the summed log-likelihood: what pulls the spline towards Platt."""

Rising = Annotated[float, Field(ge=0)]


class NothingLearned(Artifact):
    """The plain softmax has no numbers."""


class Temperature(Artifact):
    """The one number of temperature scaling."""

    temperature: float = Field(gt=0)


class PlattLine(Artifact):
    """sigmoid(slope x margin + intercept)."""

    slope: Rising
    intercept: float


class BetaCurve(Artifact):
    """sigmoid(a log p - b log(1 - p) + c), p the sigmoid of the margin."""

    a: Rising
    b: Rising
    c: float


class SplineCurve(Artifact):
    """sigmoid(intercept + slope x margin + sum of rising splines over the knots)."""

    knots: tuple[float, ...]
    """Ends and inner knots of the margin, rising; fewer than two where all margins are equal."""
    slope: Rising
    rises: tuple[Rising, ...]
    """Height of each rising spline."""
    intercept: float


class Uncalibrated(MarginCalibrator[NothingLearned]):
    """The plain softmax, so that calibration can be compared with leaving it alone."""

    name = "none"
    learned_type = NothingLearned

    def learn(self, margin: FloatArray, truth: BoolArray) -> NothingLearned:  # noqa: ARG002
        """Nothing."""
        return NothingLearned()

    def apply(self, learned: NothingLearned, margin: FloatArray) -> FloatArray:  # noqa: ARG002
        """Sigmoid of the margin."""
        return np.asarray(expit(margin))


class TemperatureCalibrator(MarginCalibrator[Temperature]):
    """Logits over one temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2), by log T within exp(-5) and exp(5).

    The targets are Platt's, as those of all the others here.
    """

    name = "temperature"
    learned_type = Temperature

    def learn(self, margin: FloatArray, truth: BoolArray) -> Temperature:
        """The temperature with the lowest cross-entropy."""
        targets = smoothed_targets(truth)

        def loss(log_temperature: float) -> float:
            scaled = margin * np.exp(-log_temperature)
            return -float((targets * log_expit(scaled) + (1 - targets) * log_expit(-scaled)).mean())

        found = minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-6})
        return Temperature(temperature=float(np.exp(found.x)))

    def apply(self, learned: Temperature, margin: FloatArray) -> FloatArray:
        """Sigmoid of the margin over the temperature."""
        return np.asarray(expit(margin / learned.temperature))


class PlattCalibrator(MarginCalibrator[PlattLine]):
    """A sigmoid of a line in the margin, with Platt's smoothed targets (Platt 1999; Lin, Lin and Weng 2007)."""

    name = "platt"
    learned_type = PlattLine

    def learn(self, margin: FloatArray, truth: BoolArray) -> PlattLine:
        """Slope and intercept with the lowest cross-entropy."""
        slope, intercept = fit_nonnegative_logistic(margin[:, None], smoothed_targets(truth))
        return PlattLine(slope=slope, intercept=intercept)

    def apply(self, learned: PlattLine, margin: FloatArray) -> FloatArray:
        """Sigmoid of the line."""
        return np.asarray(expit(learned.slope * margin + learned.intercept))


class BetaCalibrator(MarginCalibrator[BetaCurve]):
    """The three-parameter beta map (Kull, Silva Filho and Flach 2017, PMLR 54:623), with Platt's smoothed targets."""

    name = "beta"
    learned_type = BetaCurve

    def learn(self, margin: FloatArray, truth: BoolArray) -> BetaCurve:
        """a, b and c with the lowest cross-entropy."""
        a, b, c = fit_nonnegative_logistic(_beta_features(margin), smoothed_targets(truth))
        return BetaCurve(a=a, b=b, c=c)

    def apply(self, learned: BetaCurve, margin: FloatArray) -> FloatArray:
        """The beta map of the sigmoid of the margin."""
        return np.asarray(expit(_beta_features(margin) @ [learned.a, learned.b] + learned.c))


class SplineCalibrator(MarginCalibrator[SplineCurve]):
    """Platt's line plus rising splines: integrated B-splines with coefficients of at least 0 (Ramsay 1988).

    Knots stand at quantiles of the distinct margins. https://doi.org/10.1214/ss/1177012761.
    """

    name = "spline"
    learned_type = SplineCurve

    def learn(self, margin: FloatArray, truth: BoolArray) -> SplineCurve:
        """Line and splines with the lowest penalised cross-entropy."""
        knots = np.unique(np.quantile(np.unique(margin), np.linspace(0, 1, SPLINE_SEGMENTS + 1)))
        features = np.column_stack([margin, _rising_splines(margin, knots)])
        penalty = np.array([0.0, *[SPLINE_PENALTY] * (features.shape[1] - 1)])
        slope, *rises, intercept = fit_nonnegative_logistic(features, smoothed_targets(truth), penalty)
        return SplineCurve(knots=tuple(knots.tolist()), slope=slope, rises=tuple(rises), intercept=intercept)

    def apply(self, learned: SplineCurve, margin: FloatArray) -> FloatArray:
        """Sigmoid of line and splines."""
        splines = _rising_splines(margin, np.array(learned.knots)) @ np.array(learned.rises)
        return np.asarray(expit(learned.slope * margin + splines + learned.intercept))


def smoothed_targets(truth: BoolArray) -> FloatArray:
    """Platt's targets (N,): (N1 + 1) / (N1 + 2) for class 1 and 1 / (N0 + 2) for class 0, so nothing is certain."""
    positives = int(truth.sum())
    return np.where(truth, (positives + 1) / (positives + 2), 1 / (truth.size - positives + 2))


def fit_nonnegative_logistic(
    features: FloatArray, targets: FloatArray, penalty: FloatArray | None = None
) -> list[float]:
    """Coefficients of at least 0 for features (N, K), then the intercept, with the lowest summed cross-entropy.

    `penalty` (K,) weighs the squares of the coefficients, in units of the features' spread. Convex; L-BFGS-B. A feature
    that is the same in all rows, but for rounding, has the coefficient 0.
    """
    spread, middle = features.std(axis=0), features.mean(axis=0)
    varies = spread > SAME * np.abs(middle)
    scale = np.where(varies, spread, 1.0)
    x = np.where(varies, (features - middle) / scale, 0.0)
    weights = np.zeros(x.shape[1]) if penalty is None else penalty

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        z = x @ theta[:-1] + theta[-1]
        error = expit(z) - targets
        slopes = np.append(x.T @ error + 2 * weights * theta[:-1], error.sum())
        value = np.logaddexp(0, z).sum() - targets @ z + weights @ theta[:-1] ** 2
        return value / len(x), slopes / len(x)

    start = np.zeros(x.shape[1] + 1)
    bounds = [(0, None)] * x.shape[1] + [(None, None)]
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    slopes = np.maximum(theta[:-1], 0.0) / scale
    return [*slopes.tolist(), float(theta[-1] - slopes @ middle)]


def _beta_features(margin: FloatArray) -> FloatArray:
    return np.column_stack([log_expit(margin), -log_expit(-margin)])


def _rising_splines(margin: FloatArray, knots: FloatArray) -> FloatArray:
    """Integrated B-splines (N, K) over the knots, each from 0 to 1; none where the knots span nothing."""
    if knots.size < 2:
        return np.zeros((margin.size, 0))
    padded = np.concatenate([[knots[0]] * SPLINE_DEGREE, knots, [knots[-1]] * SPLINE_DEGREE])
    inside = np.clip(margin, knots[0], knots[-1])
    basis = BSpline.design_matrix(inside, padded, SPLINE_DEGREE).toarray()
    return np.asarray(np.cumsum(basis[:, :0:-1], axis=1)[:, ::-1])

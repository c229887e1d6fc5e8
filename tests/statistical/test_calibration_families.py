"""Excess NLL of the default selection, on four families of miscalibration and three sizes.

Every single calibrator fails in some setting by a factor of 5 to over 100. The default must be within three times the
best calibrator in every setting, and never be worse than the uncalibrated scores.
"""

import numpy as np
import pytest
from scipy.special import expit, log_expit, xlog1py, xlogy

from streetvision.calibration.calibrators import CALIBRATORS, make_calibrator
from streetvision.calibration.config import Phase5Config
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.selection import select_calibrator

DRAWS = {300: 60, 1000: 40, 5000: 30}
"""Size of a calibration set -> number of simulated sets."""
NEW_ROWS = 20_000


def temperature(rng, n):
    z = rng.normal(0, 2, n)
    return 3 * z, expit(z)


def beta(rng, n):
    margin = rng.normal(0, 2.5, n)
    return margin, expit(0.35 * log_expit(margin) - 1.6 * log_expit(-margin) - 0.9)


def mixture(rng, n):
    margin = rng.normal(0, 3, n)
    return margin, (expit(2 * (margin + 3)) + expit(2 * (margin - 3))) / 2


def saturated(rng, n):
    z = rng.normal(0, 2, n)
    return np.clip(40 * z, -16, 16), expit(z)


FAMILIES = {family.__name__: family for family in (temperature, beta, mixture, saturated)}


def logits_of(margin):
    return np.stack([np.zeros_like(margin), margin], axis=1)


def excess_nll(truth, probabilities):
    """Expected NLL minus that of the true probabilities, x 1000."""
    q = np.clip(probabilities, 1e-15, 1 - 1e-15)
    cross = -(truth * np.log(q) + (1 - truth) * np.log1p(-q))
    return 1000 * float(np.mean(cross + xlogy(truth, truth) + xlog1py(1 - truth, -truth)))


@pytest.mark.parametrize("n", DRAWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_close_to_the_best_and_never_worse_than_none(family, n, record_property):
    excess = {name: [] for name in (*CALIBRATORS, "default")}
    for seed in range(DRAWS[n]):
        rng = np.random.default_rng(seed)
        margin, truth = FAMILIES[family](rng, n)
        labels = (rng.random(n) < truth).astype(np.int64)
        new_margin, new_truth = FAMILIES[family](np.random.default_rng(10**6 + seed), NEW_ROWS)
        rows, new = CalibrationSet(logits_of(margin), labels, [None] * n), logits_of(new_margin)
        calibrators = {name: make_calibrator(name).fit(rows.logits, labels) for name in CALIBRATORS}
        calibrators["default"] = select_calibrator(rows, Phase5Config(seed=seed)).calibrator
        for name, calibrator in calibrators.items():
            excess[name].append(excess_nll(new_truth, calibrator.probabilities(new)))
    mean = {name: float(np.mean(values)) for name, values in excess.items()}
    for name, value in mean.items():
        record_property(name, value)
    default = mean.pop("default")
    print(f"{family} n={n}: default {default:.2f},", {k: round(v, 2) for k, v in mean.items()})  # noqa: T201
    assert default <= 3 * min(mean.values())
    assert default <= mean["none"]

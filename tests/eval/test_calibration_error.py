import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from streetvision.contracts.errors import DataError
from streetvision.eval.calibration_error import brier_parts, ece_debiased, ece_equal_mass, smooth_ece
from streetvision.eval.metrics import brier
from streetvision.eval.predictions import Predictions

MEASURES = (ece_equal_mass, ece_debiased, smooth_ece)

samples = st.integers(1, 80).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)), hnp.arrays(np.float64, n, elements=st.floats(0, 1))
    )
)


def draw(n, *, bias=0.0, seed=0):
    """Labels and probabilities that are too high by `bias`."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.2, 0.8, n)
    return (rng.random(n) < p - bias).astype(int), p


def slow_smooth_ece(labels, p):
    """smECE by the definition: kernel sums over reflections, a fine quadrature, and bisection."""
    t = (np.arange(1000) + 0.5) / 1000

    def remaining(width):
        images = [2 * k + sign * p for k in range(-3, 4) for sign in (1, -1)]
        kernel = sum(norm.pdf(t[:, None] - image, scale=width) for image in images)
        return np.abs(kernel @ (labels - p) / p.size).mean()

    low, high = 1e-3, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if remaining(middle) > middle else (low, middle)
    return low


@pytest.mark.parametrize(("n", "bias"), [(50, 0.0), (80, 0.15), (100, 0.0), (30, 0.2)])
def test_the_smooth_error_follows_its_definition(n, bias):
    labels, p = draw(n, bias=bias)
    assert smooth_ece(Predictions(labels, p)) == pytest.approx(slow_smooth_ece(labels, p), abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_the_smooth_error_of_one_probability_is_its_gap(value):
    """All residual mass at one place stays one-signed at any width."""
    assert smooth_ece(Predictions(np.zeros(10), np.full(10, value))) == pytest.approx(value, abs=1e-3)


@given(samples)
def test_errors_are_in_range_and_independent_of_the_row_order(sample):
    labels, p = sample
    for measure in MEASURES:
        error = measure(Predictions(labels, p))
        assert 0 <= error <= 1 + 1e-9
        assert measure(Predictions(labels[::-1], p[::-1])) == pytest.approx(error, abs=1e-9)


@given(samples)
def test_the_parts_add_up_to_the_brier_score_and_are_not_negative(sample):
    parts = brier_parts(Predictions(*sample))
    total = parts.miscalibration - parts.discrimination + parts.uncertainty
    assert total == pytest.approx(brier(*sample), abs=1e-12)
    assert min(parts.miscalibration, parts.discrimination, parts.uncertainty) >= -1e-12


def test_bins_of_equal_mass_in_a_worked_example():
    labels = [0, 0, 1, 1, 1, 0]
    p = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    assert ece_equal_mass(Predictions(labels, p), n_bins=2) == pytest.approx((abs(1 - 0.6) + abs(2 - 2.1)) / 6)


def test_ties_share_a_bin():
    """Split among two bins, the rows of probability 0.5 would show a gap that half of them do not have."""
    labels = [0, 0, 1, 1, 0, 1]
    p = [0.1, 0.5, 0.5, 0.5, 0.5, 0.9]
    assert ece_equal_mass(Predictions(labels, p), n_bins=3) == pytest.approx((abs(2 - 2.1) + abs(1 - 0.9)) / 6)


def test_the_debiased_error_is_far_below_the_plain_one_for_calibrated_probabilities():
    drawn = [Predictions(*draw(300, seed=seed)) for seed in range(60)]
    plain, debiased = [ece_equal_mass(rows) for rows in drawn], [ece_debiased(rows) for rows in drawn]
    assert np.mean(debiased) < np.mean(plain) / 2
    biased = [ece_debiased(Predictions(*draw(3000, bias=0.15, seed=s))) for s in range(20)]
    assert np.mean(biased) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("measure", [*MEASURES, brier_parts])
def test_invalid_input_is_an_error(measure):
    for labels, p in (([], []), ([0, 1], [0.5]), ([0, 2], [0.5, 0.5]), ([0, 1], [0.5, 1.5])):
        with pytest.raises(DataError):
            measure(Predictions(labels, p))

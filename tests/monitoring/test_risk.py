"""Time-uniform bounds of an error probability against numerical integration."""

import numpy as np
import pytest
from scipy import integrate, stats

from streetvision.monitoring.risk import log_evidence_above, risk_bounds


def test_evidence_is_the_mixture_of_likelihood_ratios():
    errors, n, risk = 7, 60, 0.05

    def ratio(q):
        return stats.beta(0.5, 0.5).pdf(q) * (q / risk) ** errors * ((1 - q) / (1 - risk)) ** (n - errors)

    expected = integrate.quad(ratio, risk, 1, limit=200)[0]
    assert log_evidence_above(errors, n, risk) == pytest.approx(np.log(expected), rel=1e-5)


def test_bounds_enclose_the_rate_and_shrink():
    previous = 1.0
    for n in (10, 100, 1000, 10_000):
        low, high = risk_bounds(n // 10, n, 0.05)
        assert 0 <= low < 0.1 < high <= 1
        assert high - low < previous
        previous = high - low


@pytest.mark.parametrize("errors", [0, 1, 5])
def test_all_or_no_errors_have_finite_bounds(errors):
    n = max(errors, 1)
    low, high = risk_bounds(errors, n, 0.05)
    assert 0 <= low <= errors / n <= high <= 1


def test_without_labels_nothing_is_known():
    assert risk_bounds(0, 0, 0.05) == (0.0, 1.0)

"""The estimate of the prevalence against expectation maximization."""

import numpy as np
import pytest
from scipy.special import expit

from streetvision.monitoring.prevalence import BINS, estimate_prevalence, logit_bins


def draw(rng, n, share, separation=3.0):
    """Labels, and the exact log-odds at a share of 0.3 of positives."""
    labels = (rng.random(n) < share).astype(np.int64)
    x = rng.normal(np.where(labels == 1, separation / 2, -separation / 2), 1)
    return labels, separation * x + np.log(0.3 / 0.7)


def saerens(probabilities, prior):
    """Expectation maximization, as in the paper."""
    share = prior
    for _ in range(2000):
        one = probabilities * share / prior
        share = float(np.mean(one / (one + (1 - probabilities) * (1 - share) / (1 - prior))))
    return share


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_estimate_is_that_of_expectation_maximization(share):
    rng = np.random.default_rng(0)
    labels, reference = draw(rng, 20_000, 0.3)
    _, stream = draw(rng, 2000, share)
    found = estimate_prevalence(
        np.bincount(logit_bins(expit(stream)), minlength=BINS), logit_bins(expit(reference)), labels
    )
    assert found is not None
    assert found.estimate == pytest.approx(saerens(expit(stream), 0.3), abs=0.006)
    assert found.estimate == pytest.approx(share, abs=0.03)
    assert found.low <= share <= found.high


def test_miscalibrated_probabilities_are_corrected():
    rng = np.random.default_rng(1)
    labels, reference = draw(rng, 20_000, 0.3)
    _, stream = draw(rng, 4000, 0.5)
    distorted = logit_bins(expit(2 * reference + 1)), logit_bins(expit(2 * stream + 1))
    found = estimate_prevalence(np.bincount(distorted[1], minlength=BINS), distorted[0], labels)
    assert found is not None
    assert found.estimate == pytest.approx(0.5, abs=0.03)


def test_no_estimate_without_images_or_separation():
    rng = np.random.default_rng(2)
    labels, reference = draw(rng, 500, 0.3)
    bins = logit_bins(expit(reference))
    counts = np.bincount(bins, minlength=BINS)
    assert estimate_prevalence(np.zeros(BINS, dtype=np.int64), bins, labels) is None
    assert estimate_prevalence(counts, bins, np.zeros_like(labels)) is None
    assert estimate_prevalence(counts, np.full_like(bins, 100), labels) is None


def test_probabilities_of_zero_and_one_have_bins():
    assert logit_bins(np.array([0.0, 0.5, 1.0])).tolist() == [0, BINS // 2, BINS - 1]

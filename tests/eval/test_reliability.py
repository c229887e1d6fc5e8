import numpy as np
import pytest
import scipy.stats

from streetvision.eval.metrics import ece
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import ece_band, reliability_bins, wilson_interval
from streetvision.eval.resampling import Resampling


def test_bins_of_a_worked_example():
    bins = reliability_bins(Predictions([0, 1, 1, 1], [0.1, 0.15, 0.95, 1.0]), n_bins=5)
    assert bins.count.tolist() == [2, 2]
    assert bins.probability.tolist() == pytest.approx([0.125, 0.975])
    assert bins.frequency.tolist() == [0.5, 1.0]
    exact = scipy.stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert (bins.low[0], bins.high[0]) == pytest.approx((exact.low, exact.high))


def test_bins_add_up_to_the_calibration_error():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 500), rng.random(500)
    bins = reliability_bins(Predictions(labels, p))
    assert bins.count.sum() == 500
    assert np.sum(bins.count * np.abs(bins.frequency - bins.probability)) / 500 == pytest.approx(ece(labels, p))


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (500, 1000)])
def test_wilson_equals_the_peer(hits, n):
    exact = scipy.stats.binomtest(hits, n).proportion_ci(0.9, method="wilson")
    low, high = wilson_interval(hits, n, level=0.9)
    assert (float(low), float(high)) == pytest.approx((exact.low, exact.high), abs=1e-12)


def band(p, groups=None, **options):
    """The band, which does not depend on the labels."""
    return ece_band(Predictions(np.zeros(len(p)), p, groups), Resampling(**options))


def test_wilson_without_trials_is_the_unit_interval():
    assert [float(end) for end in wilson_interval(0, 0)] == [0.0, 1.0]


def test_the_band_contains_the_error_of_calibrated_probabilities_only():
    rng = np.random.default_rng(0)
    p = rng.random(800)
    low, high = band(p)
    errors = [ece(rng.random(800) < p, p) for _ in range(400)]
    assert np.mean([low <= error <= high for error in errors]) == pytest.approx(0.95, abs=0.035)
    assert ece(rng.random(800) < p**2, p) > high


def test_the_band_shrinks_with_more_rows_and_keeps_its_seed():
    p = np.random.default_rng(0).random(400)
    assert band(np.tile(p, 16))[1] < band(p)[1] / 3
    first, again, other = (band(p, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert band(p, level=0.5)[1] < band(p)[1]


def tracks(rng, n=60, frames=30):
    """Tracks with calibrated probabilities, whose frames share one random number."""
    p = np.clip(rng.uniform(0.02, 0.98, n).repeat(frames) + rng.normal(0, 0.05, n * frames), 0, 1)
    return (rng.random(n).repeat(frames) < p).astype(int), p, np.arange(n).repeat(frames).tolist()


def test_the_band_draws_the_frames_of_one_track_together():
    rng = np.random.default_rng(0)
    drawn = [tracks(rng) for _ in range(200)]
    above = [ece(labels, p) > band(p, groups, n_resamples=200)[1] for labels, p, groups in drawn]
    assert np.mean(above) < 0.06
    assert np.mean([ece(labels, p) > band(p, n_resamples=200)[1] for labels, p, _ in drawn]) > 0.9


def test_intervals_count_the_groups_of_a_bin():
    labels, p, groups = tracks(np.random.default_rng(1))
    frames, whole = reliability_bins(Predictions(labels, p)), reliability_bins(Predictions(labels, p, groups))
    assert np.array_equal(frames.frequency, whole.frequency)
    assert np.all(whole.high - whole.low > frames.high - frames.low)
    once = reliability_bins(Predictions([0, 1, 1], [0.5, 0.5, 0.5], ["a", "b", None]))
    assert (once.low[0], once.high[0]) == pytest.approx(tuple(map(float, wilson_interval(2, 3))))

import math

import numpy as np
import pytest
import scipy.stats

from streetvision.eval import intervals
from streetvision.eval.counts import Counts, threshold_counts
from streetvision.eval.metrics import METRICS, average_precision, roc_auc


def test_bca_equals_the_peer_on_the_same_resamples():
    sample = np.random.default_rng(0).exponential(size=40)
    peer = scipy.stats.bootstrap((sample,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(1))
    jackknife = (sample.sum() - sample) / (sample.size - 1)
    low, high = intervals.bca(float(sample.mean()), peer.bootstrap_distribution, jackknife, 0.95)
    assert (low, high) == pytest.approx(tuple(peer.confidence_interval), rel=1e-3)


def test_bca_survives_replicates_on_one_side_and_a_flat_jackknife():
    low, high = intervals.bca(0.0, np.linspace(1, 2, 100), np.zeros(10), 0.95)
    assert 1 <= low <= high <= 2


def test_logit_normal_stays_inside_and_leans_away_from_the_edge():
    replicates = np.random.default_rng(0).normal(0.98, 0.01, 5000)
    low, high = intervals.logit_normal(0.98, replicates, 0.95)
    assert 0 < low < 0.98 < high < 1
    assert 0.98 - low > high - 0.98


def test_widened_normal_goes_down_by_the_bias_and_not_below_zero():
    replicates = np.array([0.05, 0.07])
    spread = 1.959964 * replicates.std(ddof=1)
    low, high = intervals.widened_normal(0.058, replicates, 0.95)
    assert low == pytest.approx(0.058 - 0.002 / (np.sqrt(2) - 1) - spread, abs=1e-6)
    assert high == pytest.approx(0.058 + spread, abs=1e-6)
    assert intervals.widened_normal(0.02, replicates, 0.95)[0] == 0.0


@pytest.mark.parametrize("positives", [5, 78, 1000])
def test_recall_without_a_miss_gets_the_jeffreys_bound(positives):
    counts = Counts(tp=positives, tn=90, fp=10, fn=0)
    low, high = intervals.bound_counts(METRICS["recall"], counts, (positives, 100), 0.95)
    exact = scipy.stats.beta.ppf([0.025, 0.975], positives + 0.5, 0.5)
    assert 1 - low == pytest.approx(1 - exact[0], rel=0.1)
    assert high == pytest.approx(exact[1], abs=1e-3)


def test_ten_tracks_of_a_hundred_frames_count_as_ten_rows():
    frames = Counts(tp=1000, tn=1000, fp=0, fn=0)
    rows = Counts(tp=10, tn=10, fp=0, fn=0)
    for name in ("mcc", "recall", "f1"):
        of_frames = intervals.bound_counts(METRICS[name], frames, (10, 10), 0.95)
        assert of_frames == pytest.approx(intervals.bound_counts(METRICS[name], rows, (10, 10), 0.95))
        assert of_frames[0] < 0.9


@pytest.mark.parametrize(("positives", "negatives"), [(5, 50), (50, 5), (30, 30)])
def test_a_perfect_order_gets_the_binomial_bound_of_the_rarer_class(positives, negatives):
    labels = np.repeat([0, 1], [negatives, positives])
    curve = threshold_counts(labels, np.linspace(0, 1, labels.size))
    low, high = intervals.bound_area(METRICS["roc_auc"], curve, (positives, negatives), 0.95)
    assert low == pytest.approx(0.025 ** (1 / min(positives, negatives)), abs=1e-12)
    assert high == 1.0
    low, high = intervals.bound_area(METRICS["pr_auc"], curve, (positives, negatives), 0.95)
    assert 0 < low < average_precision(curve) == high == 1.0


def test_bound_area_of_a_reversed_model_opens_upwards():
    labels, p = np.repeat([0, 1], 20), np.linspace(1, 0, 40)
    assert roc_auc(labels, p) == 0
    low, high = intervals.bound_area(METRICS["roc_auc"], threshold_counts(labels, p), (20, 20), 0.95)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-12))


def test_bound_mean_reach_the_worst_row():
    share = 1 - 0.025 ** (1 / 50)
    assert intervals.bound_mean(METRICS["brier"], 0.0, 50, 0.95) == pytest.approx((0.0, share))
    assert intervals.bound_mean(METRICS["nll"], 0.0, 50, 0.95)[1] == pytest.approx(share * 52 * np.log(2))


def test_zero_event_bound_is_the_clopper_pearson_bound():
    exact = scipy.stats.binomtest(0, 78).proportion_ci(0.95, method="exact").high
    assert intervals.zero_event_bound(78, 0.95) == pytest.approx(exact, abs=1e-9)
    assert intervals.zero_event_bound(0, 0.95) == 1.0


def test_normal_interval_and_p_value_agree():
    replicates = np.random.default_rng(0).normal(0, 1, 1000)
    edge = 1.959964 * replicates.std(ddof=1)
    assert intervals.two_sided_p(edge, replicates.std(ddof=1)) == pytest.approx(0.05, abs=1e-6)
    assert intervals.normal(edge, replicates, 0.95)[0] == pytest.approx(0.0, abs=1e-6)


def test_the_corrected_t_interval_follows_its_formula():
    found = intervals.corrected_t_interval([0.1, 0.2, 0.6], tested=1 / 9, level=0.95)
    error = np.std([0.1, 0.2, 0.6], ddof=1) * math.sqrt(1 / 3 + 1 / 9)
    assert found.estimate == pytest.approx(0.3)
    assert found.high - found.estimate == pytest.approx(4.302653 * error, rel=1e-6)
    assert found.low == pytest.approx(0.6 - found.high)


@pytest.mark.parametrize("differences", [[0.2], [0.2, 0.2, 0.2]])
def test_the_corrected_t_interval_needs_differences_that_vary(differences):
    found = intervals.corrected_t_interval(differences, tested=0.1, level=0.95)
    assert found.estimate == pytest.approx(0.2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)

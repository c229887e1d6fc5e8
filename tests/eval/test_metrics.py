import math

import numpy as np
import pytest
import sklearn
import sklearn.metrics as peer
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import DataError
from streetvision.eval import metrics
from streetvision.eval.counts import Counts, confusion_counts
from streetvision.eval.metrics import METRICS, Basis


@st.composite
def rows_with_ties(draw):
    """Labels and probabilities of 2 to 60 rows on a coarse scale, so that ties are the rule."""
    n = draw(st.integers(2, 60))
    levels = draw(st.integers(1, 20))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    scores = draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / levels


@pytest.fixture(scope="module", autouse=True)
def hurried_peer():
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        yield


def test_areas_equal_the_peers_on_a_thousand_draws_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n, levels = rng.integers(2, 80), rng.integers(1, 25)
        labels, p = rng.integers(0, 2, n), rng.integers(0, levels + 1, n) / levels
        labels[:2] = [0, 1]
        assert metrics.roc_auc(labels, p) == pytest.approx(peer.roc_auc_score(labels, p), abs=1e-12)
        assert metrics.pr_auc(labels, p) == pytest.approx(peer.average_precision_score(labels, p), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows_with_ties())
def test_area_is_the_share_of_pairs_in_the_right_order(rows):
    labels, p = rows
    ahead = p[labels == 1][:, None] - p[labels == 0]
    if ahead.size == 0:
        assert math.isnan(metrics.roc_auc(labels, p))
    else:
        assert metrics.roc_auc(labels, p) == pytest.approx(np.mean((np.sign(ahead) + 1) / 2), abs=1e-12)
    if not labels.any():
        assert metrics.pr_auc(labels, p) == 0


@settings(max_examples=60, deadline=None)
@given(rows_with_ties(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_count_metrics_equal_the_peers(rows, threshold):
    labels, p = rows
    decisions = p >= threshold
    if np.unique([labels, decisions]).size == 1:
        return
    ours = metrics.all_metrics(labels, p, decisions)
    assert ours["mcc"] == pytest.approx(peer.matthews_corrcoef(labels, decisions), abs=1e-12)
    assert ours["accuracy"] == pytest.approx(peer.accuracy_score(labels, decisions), abs=1e-12)
    assert ours["precision"] == pytest.approx(peer.precision_score(labels, decisions, zero_division=0), abs=1e-12)
    assert ours["recall"] == pytest.approx(peer.recall_score(labels, decisions, zero_division=0), abs=1e-12)
    assert ours["f1"] == pytest.approx(peer.f1_score(labels, decisions, zero_division=0), abs=1e-12)


def test_proper_scores_equal_the_peers():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 500), np.concatenate([[0.0, 1.0], rng.random(498)])
    assert metrics.brier(labels, p) == pytest.approx(peer.brier_score_loss(labels, p), abs=1e-12)
    assert metrics.nll(labels, p) == pytest.approx(peer.log_loss(labels, p), abs=1e-12)


def test_error_rates_of_a_worked_example():
    counts = Counts(tp=3, tn=8, fp=2, fn=1)
    assert metrics.fnr(counts) == 0.25
    assert metrics.fpr(counts) == 0.2


def test_mcc_of_counts_whose_product_overflows_64_bits():
    counts = Counts(*(np.array([cell]) for cell in (400_000, 400_000, 100_000, 100_000)))
    assert metrics.mcc(counts) == pytest.approx([0.6], abs=1e-12)


@pytest.mark.parametrize("cells", [(5, 0, 0, 0), (0, 5, 0, 0), (0, 3, 2, 0), (0, 3, 0, 2), (3, 0, 2, 0), (0, 0, 0, 0)])
def test_mcc_with_one_class_is_zero(cells):
    assert metrics.mcc(Counts(*cells)) == 0


def test_ece_of_a_worked_example_counts_the_row_at_one():
    p = np.array([0.05, 0.05, 0.95, 1.0])
    labels = np.array([0, 1, 1, 0])
    first, last = abs(0.5 - 0.05), abs(0.5 - 0.975)
    assert metrics.ece(labels, p) == pytest.approx(first / 2 + last / 2, abs=1e-15)


def test_bins_hold_both_ends():
    assert metrics.bin_index(np.array([0.0, 1 / 15, 0.999, 1.0])).tolist() == [0, 1, 14, 14]


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.basis is Basis.TERMS])
def test_weights_equal_repeated_rows(name):
    rng = np.random.default_rng(2)
    labels, p = rng.integers(0, 2, 40), rng.random(40)
    weights = rng.integers(0, 4, (3, 40))
    terms = METRICS[name].function(labels, p)
    together = metrics.sum_of_means(terms, weights.astype(float))
    apart = [getattr(metrics, name)(np.repeat(labels, row), np.repeat(p, row)) for row in weights]
    assert together == pytest.approx(apart, abs=1e-12)


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.basis is Basis.COUNTS])
def test_count_metrics_take_arrays(name):
    rng = np.random.default_rng(3)
    labels, decisions = rng.integers(0, 2, (2, 25))
    weights = rng.integers(0, 3, (4, 25)).astype(float)
    together = METRICS[name].function(confusion_counts(labels, decisions, weights))
    apart = [METRICS[name].function(confusion_counts(labels, decisions, row)) for row in weights]
    assert together.tolist() == apart


@pytest.mark.parametrize("name", METRICS)
def test_the_direction_of_each_metric_tells_a_good_model_from_a_bad_one(name):
    labels = np.array([0, 0, 0, 1, 1, 1])
    good, bad = np.array([0.1, 0.1, 0.2, 0.8, 0.9, 0.9]), np.array([0.8, 0.9, 0.9, 0.1, 0.1, 0.2])
    better = metrics.all_metrics(labels, good, good >= 0.5)[name]
    worse = metrics.all_metrics(labels, bad, bad >= 0.5)[name]
    assert (better > worse) == METRICS[name].higher_is_better


def test_positive_probability_is_the_softmax():
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [80.0, -80.0], [-3e38, 3e38]], dtype=np.float32)
    p = metrics.positive_probability(logits)
    assert p.dtype == np.float64
    assert p.tolist() == [0.5, pytest.approx(1 / (1 + math.exp(-2)), abs=1e-15), pytest.approx(math.exp(-160)), 1.0]


@pytest.mark.parametrize("logits", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[0.0, float("nan")]], [[float("inf")] * 2]])
def test_positive_probability_refuses_other_input(logits):
    with pytest.raises(DataError, match="logits"):
        metrics.positive_probability(logits)

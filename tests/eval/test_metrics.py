import math

import numpy as np
import pytest
import sklearn
import sklearn.metrics as peer
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import DataError
from streetvision.eval import metrics
from streetvision.eval.counts import Counts
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
def fast_peer():
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        yield


def peers(labels, p, decisions):
    """Every metric of the table, by scikit-learn's functions."""
    both, any_positive = labels.min() < labels.max(), labels.any()
    (tn, fp), (fn, tp) = peer.confusion_matrix(labels, decisions, labels=[0, 1])
    frequency = [np.abs(np.sum((labels - p)[metrics.bin_index(p) == b])) for b in range(15)]
    return {
        "mcc": peer.matthews_corrcoef(labels, decisions) if np.unique([labels, decisions]).size > 1 else 0.0,
        "accuracy": peer.accuracy_score(labels, decisions),
        "precision": peer.precision_score(labels, decisions, zero_division=0),
        "recall": peer.recall_score(labels, decisions, zero_division=0),
        "f1": peer.f1_score(labels, decisions, zero_division=0),
        "fnr": fn / max(fn + tp, 1),
        "fpr": fp / max(fp + tn, 1),
        "roc_auc": peer.roc_auc_score(labels, p) if both else math.nan,
        "pr_auc": peer.average_precision_score(labels, p) if any_positive else 0.0,
        "ece": np.sum(frequency) / labels.size,
        "brier": peer.brier_score_loss(labels, p, labels=[0, 1]),
        "nll": peer.log_loss(labels, p, labels=[0, 1]),
    }


@pytest.mark.slow
def test_every_metric_equals_scikit_learn_on_many_draws():
    """Ties are the rule, probabilities of 0 and 1 among them; one draw in ten holds one class only."""
    rng = np.random.default_rng(0)
    for case in range(200):
        n, levels = rng.integers(2, 80), rng.integers(1, 25)
        labels, p = rng.integers(0, 2, n), rng.integers(0, levels + 1, n) / levels
        if case % 10 == 0:
            labels[:] = case % 20 == 0
        decisions = p >= rng.choice([0.0, 0.3, 0.5, 1.0])
        expected = peers(labels, p, decisions)
        assert metrics.all_metrics(labels, p, decisions) == {
            name: pytest.approx(expected[name], abs=1e-12, nan_ok=True) for name in METRICS
        }


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


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(rows_with_ties(), st.floats(0, 1))
def test_every_metric_equals_scikit_learn_on_any_rows(rows, threshold):
    labels, p = rows
    expected = peers(labels, p, p >= threshold)
    assert metrics.all_metrics(labels, p, p >= threshold) == {
        name: pytest.approx(expected[name], abs=1e-12, nan_ok=True) for name in METRICS
    }


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


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.basis is Basis.COUNTS])
def test_count_metrics_take_arrays(name):
    cells = np.random.default_rng(3).integers(0, 9, (4, 5)).astype(float)
    together = METRICS[name].function(Counts(*cells))
    apart = [METRICS[name].function(Counts(*column)) for column in cells.T]
    assert together.tolist() == apart


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_ranks_a_good_model_above_a_bad_one(name):
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
def test_positive_probability_rejects_other_input(logits):
    with pytest.raises(DataError, match="logits"):
        metrics.positive_probability(logits)

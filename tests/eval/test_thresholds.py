import json

import numpy as np
import pytest
import sklearn.metrics as peer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import fpr, mcc, positive_probability, recall
from streetvision.eval.thresholds import (
    decide,
    select_threshold_max_mcc,
    sweep_csv,
    threshold_for_fpr,
    threshold_for_prevalence,
    threshold_for_recall,
)

LOGITS = st.one_of(st.integers(-3, 3), st.floats(-200, 200, width=32))


@st.composite
def two_class_rows(draw):
    """Logits (N, 2) in float32, with ties and saturation, and labels of both classes."""
    n = draw(st.integers(2, 40))
    logits = draw(arrays.arrays(np.float32, (n, 2), elements=LOGITS))
    labels = draw(arrays.arrays(np.int64, n, elements=st.integers(0, 1)))
    labels[:2] = [0, 1]
    return logits, labels


def noisy_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    logits = rng.normal(size=(n, 2)).astype(np.float32)
    logits[:, 1] += 2 * labels
    return logits, labels


def best_mcc_by_brute_force(labels, p):
    thresholds = [*np.unique(p), 2.0]
    return max(float(mcc(confusion_counts(labels, p >= threshold))) for threshold in thresholds)


@settings(max_examples=100, deadline=None)
@given(two_class_rows())
def test_the_optimum_is_exact_and_its_counts_are_those_of_decide(rows):
    logits, labels = rows
    p = positive_probability(logits)
    threshold, value, metrics = select_threshold_max_mcc(logits, labels)
    counts = confusion_counts(labels, decide(p, threshold))
    assert 0 <= threshold <= 1
    assert value == pytest.approx(best_mcc_by_brute_force(labels, p), abs=1e-12)
    assert [metrics[cell] for cell in ("tp", "tn", "fp", "fn")] == [counts.tp, counts.tn, counts.fp, counts.fn]
    assert value == metrics["mcc"] == pytest.approx(float(mcc(counts)), abs=1e-12)
    assert value >= metrics["grid_mcc"] - 1e-12


@pytest.mark.parametrize("above", [5e-324, 1e-300, np.nextafter(0.5, 1), 0.75, np.nextafter(1, 0), 1.0])
def test_adjacent_floats_are_separated(above):
    labels, p = [0] * 3 + [1] * 3, [np.nextafter(above, 0)] * 3 + [above] * 3
    assert decide(p, threshold_for_prevalence(labels, p)).tolist() == [False] * 3 + [True] * 3


def test_saturated_scores_are_separated_below_one():
    logits = np.array([[0, 34], [0, 35], [0, 35.5], [0, 36], [0, 36]] + [[0, 37]] * 5, dtype=np.float32)
    threshold, value, _ = select_threshold_max_mcc(logits, [0] * 5 + [1] * 5)
    assert value == 1.0
    assert decide(positive_probability(logits), threshold).tolist() == [False] * 5 + [True] * 5


def test_scores_that_saturate_to_one_stay_together():
    logits = np.array([[0, 50], [0, 60], [0, 70], [0, -1]], dtype=np.float32)
    threshold, _, metrics = select_threshold_max_mcc(logits, [1, 0, 1, 0])
    assert (metrics["tp"], metrics["fp"], metrics["fn"], metrics["tn"]) == (2, 1, 0, 1)
    assert decide(positive_probability(logits), threshold).tolist() == [True, True, True, False]


def test_the_widest_of_equally_good_gaps_is_taken_in_the_middle():
    p = np.array([0.1, 0.3, 0.35, 0.9])
    logits = np.stack([np.zeros(4), np.log(p / (1 - p))], axis=1)
    threshold, value, _ = select_threshold_max_mcc(logits, [0, 1, 0, 1])
    assert value == pytest.approx(1 / np.sqrt(3))
    assert threshold == pytest.approx((0.35 + 0.9) / 2)


def test_a_model_that_is_always_wrong_gets_one_class_for_all():
    threshold, value, metrics = select_threshold_max_mcc([[0.0, -1.0], [0.0, 2.0]], [1, 0])
    assert value == 0
    assert metrics["tp"] + metrics["fp"] in (0, 2)
    assert 0 <= threshold <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_any_float_type_give_what_their_values_give(dtype):
    logits, labels = noisy_rows(300)
    tensor = torch.tensor(logits, dtype=dtype, requires_grad=True)
    for tensor_labels in (torch.tensor(labels), torch.tensor(labels, dtype=torch.bool), torch.tensor(labels).float()):
        got = select_threshold_max_mcc(tensor, tensor_labels)
        assert got == select_threshold_max_mcc(tensor.detach().double().numpy(), labels)


def test_float64_logits_keep_their_last_bits():
    logits = torch.tensor([[0.0, 0.5], [0.0, 0.5 + 1e-12]], dtype=torch.float64)
    assert select_threshold_max_mcc(logits, [0, 1])[1] == 1.0


def test_the_grid_has_the_requested_size():
    logits, labels = noisy_rows(400)
    p = positive_probability(logits)
    _, _, metrics = select_threshold_max_mcc(logits, labels, n_thresholds=101, return_curve=True)
    curve = metrics["curve"]
    assert curve["thresholds"].tolist() == np.linspace(0, 1, 101).tolist()
    for row in (0, 17, 50, 99, 100):
        decisions = p >= curve["thresholds"][row]
        assert curve["mcc"][row] == pytest.approx(peer.matthews_corrcoef(labels, decisions), abs=1e-12)
        counts = confusion_counts(labels, decisions)
        assert [curve[cell][row] for cell in ("tp", "tn", "fp", "fn")] == [counts.tp, counts.tn, counts.fp, counts.fn]
    assert metrics["grid_mcc"] == curve["mcc"].max()
    assert curve["mcc"][curve["thresholds"] == metrics["grid_threshold"]] == metrics["grid_mcc"]


def test_the_metrics_are_plain_numbers_unless_the_curve_is_requested():
    logits, labels = noisy_rows(50)
    _, _, metrics = select_threshold_max_mcc(logits, labels)
    assert json.loads(json.dumps(metrics)) == metrics
    assert (metrics["n"], metrics["prevalence"]) == (50, labels.mean())
    assert metrics["recall"] == metrics["tp"] / labels.sum()


def test_counts_do_not_overflow_on_many_rows():
    logits, labels = noisy_rows(300_000)
    threshold, value, _ = select_threshold_max_mcc(logits, labels)
    decisions = decide(positive_probability(logits), threshold)
    assert value == pytest.approx(peer.matthews_corrcoef(labels, decisions), abs=1e-12)
    assert value > 0.4


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), [], "at least one label"),
        (np.zeros((3, 2)), [0, 1], "one probability per label"),
        (np.zeros((2, 2)), [0, 3], "labels must be 0 or 1"),
        (np.zeros((2, 2)), [1, 1], "all 2 labels are 1"),
        (np.zeros((2, 2)), [0, 0], "all 2 labels are 0"),
        (np.zeros((2, 3)), [0, 1], r"\(N, 2\)"),
        (np.zeros(2), [0, 1], r"\(N, 2\)"),
        ([[0.0, float("nan")], [0.0, 1.0]], [0, 1], "1 of 2 rows of logits"),
        (torch.tensor([[0.0, float("inf")], [0.0, 1.0]]), [0, 1], "1 of 2 rows of logits"),
        ([[0, None], [1, 2]], [0, 1], "logits"),
        ([["0", "1"], ["1", "2"]], [0, 1], "logits"),
        (np.zeros((2, 2), dtype=complex), [0, 1], "logits"),
        ([[0, 1], [2]], [0, 1], "logits"),
        (np.array([[0, 10**400], [1, 2]], dtype=object), [0, 1], "logits"),
        (np.zeros((2, 2)), ["a", "b"], "labels"),
        (np.zeros((2, 2)), [0, None], "labels"),
        (np.zeros((2, 2)), [[0], [1, 1]], "labels"),
    ],
)
def test_invalid_input_is_an_error(logits, labels, message):
    with pytest.raises(DataError, match=message):
        select_threshold_max_mcc(logits, labels)


def test_a_grid_of_one_is_an_error():
    with pytest.raises(DataError, match="n_thresholds must be >= 2; got 1"):
        select_threshold_max_mcc([[0.0, 1.0], [0.0, 2.0]], [0, 1], n_thresholds=1)


@settings(max_examples=100, deadline=None)
@given(two_class_rows(), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_the_target_recall_is_reached_and_no_higher_threshold_reaches_it(rows, target):
    logits, labels = rows
    p = positive_probability(logits)
    threshold = threshold_for_recall(labels, p, target)
    assert recall(confusion_counts(labels, decide(p, threshold))) >= target
    for higher in p[p > threshold]:
        above = np.nextafter(higher, 2)
        assert above > 1 or recall(confusion_counts(labels, decide(p, above))) < target or target == 0


@settings(max_examples=100, deadline=None)
@given(two_class_rows(), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_the_target_false_alarm_rate_is_kept_and_no_lower_threshold_keeps_it(rows, target):
    logits, labels = rows
    p = positive_probability(logits)
    if fpr(confusion_counts(labels, p >= 1.0)) > target:
        with pytest.raises(DataError, match="no threshold"):
            threshold_for_fpr(labels, p, target)
        return
    threshold = threshold_for_fpr(labels, p, target)
    assert fpr(confusion_counts(labels, decide(p, threshold))) <= target
    assert all(fpr(confusion_counts(labels, decide(p, lower))) > target for lower in p[p < threshold])


def test_balanced_threshold_is_that_of_a_balanced_copy():
    logits, labels = noisy_rows(400)
    p = positive_probability(logits)
    positives, negatives = int(labels.sum()), int((1 - labels).sum())
    repeats = np.where(labels == 1, negatives, positives)
    balanced = threshold_for_prevalence(np.repeat(labels, repeats), np.repeat(p, repeats))
    assert threshold_for_prevalence(labels, p, 0.5) == balanced
    assert threshold_for_prevalence(labels, p) == select_threshold_max_mcc(logits, labels)[0]
    assert balanced < threshold_for_prevalence(labels, p)


@pytest.mark.parametrize("select", [threshold_for_recall, threshold_for_fpr, threshold_for_prevalence])
def test_targets_outside_zero_and_one_are_errors(select):
    with pytest.raises(DataError, match="got 95"):
        select([0, 1], [0.1, 0.9], 95)


def test_sweep_csv_has_the_header_and_one_row_per_threshold():
    logits, labels = noisy_rows(50)
    curve = select_threshold_max_mcc(logits, labels, n_thresholds=11, return_curve=True)[2]["curve"]
    lines = sweep_csv(curve).splitlines()
    assert lines[0] == "threshold,mcc,tp,tn,fp,fn"
    assert len(lines) == 12
    assert [float(value) for value in lines[4].split(",")] == [
        curve[name][3] for name in ("thresholds", "mcc", "tp", "tn", "fp", "fn")
    ]
    assert lines[1].split(",")[2:] == [str(labels.sum()), "0", str(50 - labels.sum()), "0"]

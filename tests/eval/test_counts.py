import numpy as np
import pytest

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import confusion_counts, threshold_counts
from streetvision.eval.predictions import Predictions


def test_confusion_counts_of_a_worked_example():
    counts = confusion_counts([1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 1])
    assert (counts.tp, counts.tn, counts.fp, counts.fn) == (2, 3, 1, 1)
    assert (counts.positives, counts.negatives, counts.total) == (3, 4, 7)


def test_threshold_counts_run_from_all_positive_to_none_and_keep_ties_together():
    counts = threshold_counts([0, 1, 0, 1, 1], [0.2, 0.5, 0.5, 1.0, -0.0])
    assert counts.scores.tolist() == [0.0, 0.2, 0.5, 1.0]
    assert counts.tp.tolist() == [3, 2, 2, 1, 0]
    assert counts.fp.tolist() == [2, 2, 1, 0, 0]
    assert (counts.positives, counts.negatives) == (3, 2)


def test_threshold_counts_equal_the_counts_of_the_decisions():
    rng = np.random.default_rng(1)
    labels, p = rng.integers(0, 2, 200), rng.integers(0, 11, 200) / 10
    thresholds = np.linspace(0, 1.1, 23)
    at = threshold_counts(labels, p).at(thresholds)
    for position, threshold in enumerate(thresholds):
        plain = confusion_counts(labels, p >= threshold)
        assert [at.tp[position], at.tn[position], at.fp[position], at.fn[position]] == [
            plain.tp,
            plain.tn,
            plain.fp,
            plain.fn,
        ]


def test_the_smallest_and_nearest_floats_stay_apart():
    p = np.array([0.0, 5e-324, np.nextafter(1, 0), 1.0])
    assert threshold_counts([0, 1, 0, 1], p).scores.tolist() == p.tolist()


def test_inputs_are_left_as_they_were():
    p = np.array([0.7, 0.1])
    threshold_counts(np.array([1, 0]), p)
    assert p.tolist() == [0.7, 0.1]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], [], "at least one"),
        ([[0, 1]], [[0.1, 0.2]], "at least one"),
        ([0, 1], [0.1], "one probability per label"),
        ([0, 2, -1], [0.1, 0.2, 0.3], r"found \[-1, 2\]"),
        ([0, float("nan")], [0.1, 0.2], "found"),
        ([0, 1], [0.1, float("nan")], "1 of 2"),
        ([0, 1, 1], [-0.1, 1.5, 0.2], "2 of 3"),
        ([0, 1], [0.1, float("inf")], "1 of 2"),
        ([0, 1], ["a", "b"], "probabilities"),
        ([0, 1], [0.1, 0.2j], "probabilities"),
    ],
)
def test_invalid_arrays_are_errors(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        Predictions(labels, probabilities)

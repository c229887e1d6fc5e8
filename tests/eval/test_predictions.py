import numpy as np
import pytest

from streetvision.contracts.errors import DataError
from streetvision.eval.predictions import Predictions


def test_arrays_are_read_only_copies_of_fixed_types():
    p = np.array([0.2, 0.9], dtype=np.float32)
    predictions = Predictions([0, 1], p)
    p[0] = 0.7
    assert predictions.probabilities[0] == pytest.approx(0.2)
    assert (predictions.labels.dtype, predictions.probabilities.dtype) == (np.bool_, np.float64)
    for array in (predictions.labels, predictions.probabilities, predictions.decisions):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_decisions_are_those_given_or_follow_a_threshold():
    labels, p = [0, 1, 1], [0.3, 0.5, 0.9]
    assert Predictions(labels, p).decisions.tolist() == [False, True, True]
    assert Predictions.at_threshold(labels, p, 0.6).decisions.tolist() == [False, False, True]
    assert Predictions(labels, p, decisions=[1, 0, 0]).decisions.tolist() == [True, False, False]
    with pytest.raises(DataError, match="one decision per label"):
        Predictions(labels, p, decisions=[0, 1])


def test_groups_must_be_one_per_row():
    with pytest.raises(DataError, match="got 2 groups for 3 rows"):
        Predictions([0, 1, 1], [0.1, 0.2, 0.3], ["a", "b"])


def test_a_subset_keeps_the_rows_in_the_given_order():
    part = Predictions([0, 1, 1], [0.1, 0.2, 0.8], ["a", "b", None], decisions=[1, 1, 0]).subset(np.array([2, 0]))
    assert part.labels.tolist() == [True, False]
    assert part.probabilities.tolist() == [0.8, 0.1]
    assert part.decisions.tolist() == [False, True]
    assert part.groups == (None, "a")
    assert not part.labels.flags.writeable
    assert len(part) == part.units.count == 2

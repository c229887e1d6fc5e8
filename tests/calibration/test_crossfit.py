import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.calibration.calibrators import make_calibrator
from streetvision.calibration.crossfit import CalibrationSet, assign_folds, crossfit, crossfit_decisions
from streetvision.contracts.errors import DataError
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.thresholds import threshold_for_prevalence


@given(
    groups=st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", None]), min_size=30, max_size=80),
    folds=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_groups_stay_together_and_every_fold_has_rows(groups, folds, seed):
    if len({g for g in groups if g}) + groups.count(None) < folds:
        return
    fold_of = assign_folds(groups, folds=folds, seed=seed)
    assert set(fold_of) == set(range(folds))
    for name in {g for g in groups if g is not None}:
        assert len({f for f, g in zip(fold_of, groups, strict=True) if g == name}) == 1
    assert np.array_equal(fold_of, assign_folds(groups, folds=folds, seed=seed))


def test_rows_without_groups_are_assigned_evenly():
    assert sorted(np.bincount(assign_folds([None] * 22, folds=5, seed=0))) == [4, 4, 4, 5, 5]


def test_no_row_is_evaluated_by_a_calibrator_that_was_fitted_on_it():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 2)).astype(np.float32)
    labels = rng.integers(0, 2, 60)
    groups = [f"g{i // 3}" for i in range(60)]
    rows = CalibrationSet(logits, labels, groups)
    crossfitted = crossfit(lambda r: make_calibrator("temperature").fit(r.logits, r.labels), rows, folds=4, seed=1)
    fold_of = assign_folds(groups, folds=4, seed=1)
    for fold in range(4):
        out = fold_of == fold
        expected = make_calibrator("temperature").fit(logits[~out], labels[~out]).probabilities(logits[out])
        assert np.array_equal(crossfitted[out], expected)


def test_no_row_is_decided_by_a_threshold_that_was_fitted_on_it():
    """Scores that are independent of the labels have an MCC of 0, but the in-sample MCC is higher."""
    calibrator, crossfitted, in_sample = make_calibrator("none").fit([[0.0, 1.0]], [1]), [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logits, labels = np.column_stack([np.zeros(100), rng.normal(size=100)]), rng.integers(0, 2, 100)
        rows = CalibrationSet(logits, labels, [None] * 100)
        predictions = crossfit_decisions(lambda _: calibrator, rows, folds=5, seed=0)
        p = calibrator.probabilities(logits)
        assert np.array_equal(predictions.probabilities, p)
        crossfitted.append(mcc(confusion_counts(labels, predictions.decisions)))
        in_sample.append(mcc(confusion_counts(labels, p >= threshold_for_prevalence(labels, p))))
    assert abs(np.mean(crossfitted)) < 0.05
    assert np.mean(in_sample) > 0.1


def test_training_folds_of_one_class_get_the_threshold_one_half():
    logits = np.column_stack([np.zeros(8), np.linspace(-2, 2, 8)])
    rows = CalibrationSet(logits, np.repeat([0, 1], 4), ["a"] * 4 + ["b"] * 4)
    fit = make_calibrator("none").fit(logits, rows.labels)
    assert crossfit_decisions(lambda _: fit, rows, folds=2, seed=0).decisions.tolist() == [False] * 4 + [True] * 4


def test_fewer_groups_than_folds_is_an_error():
    with pytest.raises(DataError, match="2 groups"):
        assign_folds(["a", "b"] * 5, folds=5, seed=0)

import numpy as np
import pytest
from scipy.special import expit

from streetvision.calibration.calibrators import restore_calibrator
from streetvision.calibration.config import Phase5Config
from streetvision.calibration.crossfit import CalibrationSet, assign_folds
from streetvision.calibration.scrc import fit_scrc
from streetvision.contracts.errors import DataError
from streetvision.contracts.policies import ScrcParams
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import ece, mcc, nll, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold


def draw(n=600, *, temperature=3.0, seed=0):
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 9, n)
    labels = (rng.random(n) < expit(margin / temperature)).astype(np.int64)
    return CalibrationSet(np.stack([0 * margin, margin], axis=1).astype(np.float32), labels, [None] * n)


@pytest.fixture(scope="module")
def fitted():
    return fit_scrc(draw(), Phase5Config(folds=3))


def test_the_parameters_are_restored_from_json(fitted):
    assert ScrcParams.model_validate_json(fitted.params.model_dump_json()) == fitted.params


def test_the_threshold_is_selected_on_the_exported_probabilities(fitted):
    rows, params = draw(), fitted.params
    p = restore_calibrator(params.calibrator).probabilities(rows.logits)
    assert params.threshold == bagged_threshold(Predictions(rows.labels, p, rows.groups))
    assert params.threshold == params.operating_points["data"].threshold
    in_sample = float(mcc(confusion_counts(rows.labels, p >= params.threshold)))
    assert params.operating_points["data"].metrics["mcc"] == pytest.approx(in_sample)
    mcc_values = [float(mcc(confusion_counts(rows.labels, p >= threshold))) for threshold in np.unique(p)]
    assert max(mcc_values) - 0.02 < in_sample <= max(mcc_values) + 1e-12


def test_the_reported_metrics_are_cross_fitted(fitted):
    labels = draw().labels
    assert fitted.params.after["nll"].estimate == pytest.approx(nll(labels, fitted.after))
    assert fitted.params.before["ece"].estimate == pytest.approx(ece(labels, fitted.before))
    for estimates in (fitted.params.before, fitted.params.after):
        assert all(f.low <= f.estimate <= f.high for f in estimates.values())
    in_sample = fitted.selection.calibrator.probabilities(draw().logits)
    assert nll(labels, in_sample) < fitted.params.after["nll"].estimate


def test_the_selection_is_cross_fitted():
    """The probabilities of a fold do not depend on the labels of that fold."""
    rows, config = draw(200), Phase5Config(folds=2)
    held = assign_folds(rows.groups, folds=2, seed=0) == 1
    flipped = np.where(held, 1 - rows.labels, rows.labels)
    before = fit_scrc(rows, config).after
    after = fit_scrc(CalibrationSet(rows.logits, flipped, rows.groups), config).after
    assert np.array_equal(before[held], after[held])


def test_both_bounds_of_the_risk_control_are_reported_as_probabilities(fitted):
    control = fitted.params.risk_control
    assert control.certified
    calibrator = restore_calibrator(fitted.params.calibrator)
    bounds = calibrator.probabilities([[0.0, control.lo], [0.0, control.hi]])
    assert (control.lo_probability, control.hi_probability) == pytest.approx(tuple(bounds))
    assert 0 < control.abstained < 1


def test_groups_are_units():
    rows = draw(600)
    params = fit_scrc(
        CalibrationSet(rows.logits, rows.labels, [f"g{i // 6}" for i in range(600)]), Phase5Config(folds=2)
    ).params
    assert params.risk_control.units == "groups"
    assert params.risk_control.n <= 100
    assert not params.risk_control.certified or params.risk_control.lo <= params.risk_control.hi


def test_retrained_scores_are_not_calibrated_and_are_compared_with_the_original_ones():
    base = draw(300)
    rows = CalibrationSet(base.logits / 3, base.labels, base.groups)
    fitted = fit_scrc(rows, Phase5Config(method="mac_cal", folds=2), base=base)
    assert (fitted.params.method, fitted.params.calibrator.name) == ("mac_cal", "none")
    assert np.array_equal(fitted.before, positive_probability(base.logits))
    assert np.array_equal(fitted.after, positive_probability(rows.logits))
    assert fitted.params.after["nll"].estimate < fitted.params.before["nll"].estimate


def test_without_a_certificate_there_is_no_abstention():
    control = fit_scrc(draw(40), Phase5Config(method="none", folds=2)).params.risk_control
    assert not control.certified
    assert (control.lo, control.hi, control.lo_probability, control.abstained) == (None, None, None, 0.0)
    assert "cannot be certified" in control.reason
    assert control.units == "rows"


def test_intervals_of_out_of_fold_scores_are_those_of_a_cross_validation():
    rows, config = draw(200), Phase5Config(method="none", folds=2)
    set_aside, of_folds = fit_scrc(rows, config), fit_scrc(rows, config, fold_models=2)
    for name, interval in of_folds.intervals.items():
        assert interval.low <= interval.estimate <= interval.high
        assert interval.estimate == set_aside.intervals[name].estimate
    for name in ("mcc", "nll"):
        wide, plain = of_folds.intervals[name], set_aside.intervals[name]
        assert wide.high - wide.low == pytest.approx(np.sqrt(2) * (plain.high - plain.low), rel=0.15)
        assert of_folds.params.after[name].low == wide.low
        assert of_folds.params.before[name].high > set_aside.params.before[name].high
    risk = of_folds.params.risk_control.out_of_fold["data"]
    assert (risk.low, risk.high) == (of_folds.intervals["fnr"].low, of_folds.intervals["fnr"].high)


def test_out_of_fold_scores_without_errors_have_intervals():
    labels = np.arange(40) % 2
    logits = np.stack([0 * labels, 40.0 * labels - 20], axis=1)
    fitted = fit_scrc(CalibrationSet(logits, labels, [None] * 40), Phase5Config(method="none", folds=2), fold_models=2)
    for name in ("mcc", "accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc"):
        assert fitted.intervals[name].low < fitted.intervals[name].estimate == 1
    for name in ("fnr", "fpr"):
        assert fitted.intervals[name].estimate == 0 < fitted.intervals[name].high


def test_one_class_alone_is_an_error():
    rows = draw(50)
    with pytest.raises(DataError, match="all 50 labels are 1"):
        fit_scrc(CalibrationSet(rows.logits, np.ones(50, dtype=np.int64), rows.groups), Phase5Config(folds=2))


@pytest.mark.parametrize(
    ("method", "sizes", "folds"),
    [
        ("auto", (40, 40, 40), 3),
        ("auto", (60, 20, 40), 2),
        ("auto", (60, 60), 2),
        ("multi_objective", (60, 60), 2),
        ("temperature", (60, 20, 20, 20), 4),
    ],
)
def test_few_groups_are_cross_fitted_without_their_labels(method, sizes, folds):
    names = [name for name, size in zip("abcd", sizes, strict=False) for _ in range(size)]
    rows, config = draw(120), Phase5Config(method=method, folds=folds)
    held = assign_folds(names, folds=folds, seed=0) == 1
    flipped = np.where(held, 1 - rows.labels, rows.labels)
    before = fit_scrc(CalibrationSet(rows.logits, rows.labels, names), config).predictions
    after = fit_scrc(CalibrationSet(rows.logits, flipped, names), config).predictions
    assert np.array_equal(before.probabilities[held], after.probabilities[held])
    assert np.array_equal(before.decisions[held], after.decisions[held])


@pytest.mark.parametrize(("method", "name"), [("auto", "none"), ("ensemble", "none"), ("temperature", "temperature")])
def test_nothing_is_cross_fitted_on_one_group(method, name):
    drawn = draw(120)
    rows = CalibrationSet(drawn.logits, drawn.labels, ["a"] * 120)
    config = Phase5Config(method=method).model_copy(update={"folds": 1})
    fitted = fit_scrc(rows, config)
    assert fitted.params.calibrator.name == name
    assert np.array_equal(fitted.after, positive_probability(rows.logits))
    assert np.array_equal(fitted.predictions.decisions, fitted.after >= 0.5)


def test_more_folds_than_groups_are_refused():
    rows = draw(120)
    with pytest.raises(DataError):
        fit_scrc(CalibrationSet(rows.logits, rows.labels, ["a", "b"] * 60), Phase5Config(method="auto", folds=3))

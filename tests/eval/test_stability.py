import numpy as np
import pytest
from scipy.special import expit, logit

from streetvision.contracts.errors import DataError
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.predictions import Predictions, units_of
from streetvision.eval.resampling import Resampling, draw_weights
from streetvision.eval.stability import bagged_threshold, mcc_band, threshold_interval
from streetvision.eval.thresholds import threshold_for_prevalence


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, expit(rng.normal(size=n) + 2.5 * (labels - 0.5))


def test_the_band_is_the_interval_of_mcc_at_each_threshold():
    labels, p = rows()
    labels, p = labels[np.argsort(p)], np.sort(p)
    thresholds = [0.1, 0.5, 0.8]
    band = mcc_band(Predictions(labels, p), thresholds, Resampling(seed=3))
    for column, threshold in enumerate(thresholds):
        alone = bootstrap_intervals(Predictions.at_threshold(labels, p, threshold), Resampling(seed=3))["mcc"]
        found = (band.mcc[column], band.low[column], band.high[column])
        assert found == pytest.approx((alone.estimate, alone.low, alone.high), abs=1e-12)


def test_the_band_does_not_depend_on_the_order_of_thresholds():
    predictions = Predictions(*rows())
    up, down = mcc_band(predictions, [0.2, 0.7]), mcc_band(predictions, [0.7, 0.2])
    assert (up.low.tolist(), up.high.tolist()) == (down.low[::-1].tolist(), down.high[::-1].tolist())


def test_the_band_has_width_where_all_rows_get_one_class():
    band = mcc_band(Predictions(*rows()), [0.0, 1.0])
    assert band.mcc.tolist() == [0.0, 0.0]
    assert (band.low < 0).all()
    assert (band.high > 0).all()


def test_copies_in_groups_do_not_narrow_the_band():
    labels, p = rows(100)
    groups = np.arange(100).repeat(30).tolist()
    once = mcc_band(Predictions(labels, p), [0.5])
    copies = mcc_band(Predictions(labels.repeat(30), p.repeat(30), groups), [0.5])
    ungrouped = mcc_band(Predictions(labels.repeat(30), p.repeat(30)), [0.5])
    assert copies.high - copies.low == pytest.approx(once.high - once.low, abs=1e-9)
    assert (ungrouped.high - ungrouped.low < (once.high - once.low) / 2).all()


def test_threshold_interval_is_that_of_the_optima_of_the_resamples():
    labels, p = rows(60)
    drawn = [row for weights in draw_weights(units_of(None, 60), 200, seed=1) for row in weights]
    chosen = [threshold_for_prevalence(np.repeat(labels, row), np.repeat(p, row)) for row in drawn]
    expected = np.quantile(chosen, [0.025, 0.975])
    interval = threshold_interval(Predictions(labels, p), Resampling(n_resamples=200, seed=1))
    assert interval == pytest.approx(tuple(expected))


@pytest.mark.parametrize("prevalence", [None, 0.5])
def test_bagged_threshold_is_the_mean_of_the_optima_of_the_resamples(prevalence):
    labels, p = rows(60)
    groups = np.arange(20).repeat(3).tolist()
    drawn = [row for weights in draw_weights(units_of(groups, 60), 100, seed=1) for row in weights]
    chosen = [threshold_for_prevalence(np.repeat(labels, row), np.repeat(p, row), prevalence) for row in drawn]
    found = bagged_threshold(Predictions(labels, p, groups), prevalence, seed=1)
    assert found == pytest.approx(expit(np.mean(logit(chosen))))


def test_bagged_threshold_of_separated_classes_is_between_them():
    labels = np.arange(200) >= 150
    p = np.where(labels, 0.9, 0.2) + np.random.default_rng(0).uniform(-0.1, 0.1, 200)
    assert p[~labels].max() < bagged_threshold(Predictions(labels, p)) < p[labels].min()


def test_bagged_threshold_is_within_the_scores_though_some_resamples_have_no_useful_one():
    p = 0.5 + 0.001 * np.array([3, 4, 0, 5, 1, 2])
    found = bagged_threshold(Predictions([0, 0, 0, 1, 1, 1], p))
    drawn = [row for weights in draw_weights(units_of([None] * 6, 6), 100, seed=0) for row in weights]
    two_classes = [row for row in drawn if 0 < row[:3].sum() < 6]
    chosen = [threshold_for_prevalence(np.repeat([0, 0, 0, 1, 1, 1], row), np.repeat(p, row)) for row in two_classes]
    assert not p.min() < expit(np.mean(logit(chosen))) < p.max()
    assert p.min() < found < p.max()


@pytest.mark.parametrize("p", [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
def test_bagged_threshold_of_saturated_probabilities_is_inside_the_unit_interval(p):
    assert 0 < bagged_threshold(Predictions([0, 0, 1, 1], p)) < 1


def test_bagged_threshold_needs_both_classes_but_not_in_every_resample():
    with pytest.raises(DataError, match="both classes"):
        bagged_threshold(Predictions([1, 1], [0.5, 0.6]))
    assert 0.1 < bagged_threshold(Predictions([0, 1], [0.1, 0.9])) < 0.9


def test_more_rows_narrow_the_threshold_interval_and_copies_do_not():
    labels, p = rows(100)
    low, high = threshold_interval(Predictions(labels, p))
    copies = Predictions(labels.repeat(20), p.repeat(20), np.arange(100).repeat(20).tolist())
    assert threshold_interval(copies) == pytest.approx((low, high))
    more = threshold_interval(Predictions(*rows(20_000)), Resampling(n_resamples=200))
    assert more[1] - more[0] < (high - low) / 2


def test_resamples_of_one_class_are_ignored():
    low, high = threshold_interval(Predictions([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.9]))
    assert 0.5 <= low <= high < 0.9


def test_a_threshold_of_one_class_is_an_error():
    with pytest.raises(DataError, match="both classes"):
        threshold_interval(Predictions([1, 1], [0.5, 0.6]))


def test_the_optimum_is_within_its_interval():
    labels, p = rows()
    threshold = threshold_for_prevalence(labels, p)
    band = mcc_band(Predictions(labels, p), [threshold])
    assert band.mcc[0] == mcc(confusion_counts(labels, p >= threshold))
    assert band.low[0] < band.mcc[0] < band.high[0]

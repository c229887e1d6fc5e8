import numpy as np
import pytest
from scipy.special import expit

from streetvision.contracts.errors import DataError
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.resampling import Predictions, Resampling, draw_weights, units_of
from streetvision.eval.stability import mcc_band, threshold_interval
from streetvision.eval.thresholds import threshold_for_prevalence


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, expit(rng.normal(size=n) + 2.5 * (labels - 0.5))


def test_the_band_is_the_interval_of_mcc_at_each_threshold():
    labels, p = rows()
    labels, p = labels[np.argsort(p)], np.sort(p)
    thresholds = [0.1, 0.5, 0.8]
    band = mcc_band(labels, p, thresholds, Resampling(seed=3))
    for column, threshold in enumerate(thresholds):
        alone = bootstrap_intervals(labels, Predictions.cut(p, threshold), Resampling(seed=3))["mcc"]
        found = (band.mcc[column], band.low[column], band.high[column])
        assert found == pytest.approx((alone.estimate, alone.low, alone.high), abs=1e-12)


def test_the_band_does_not_depend_on_the_order_of_thresholds():
    labels, p = rows()
    up, down = mcc_band(labels, p, [0.2, 0.7]), mcc_band(labels, p, [0.7, 0.2])
    assert (up.low.tolist(), up.high.tolist()) == (down.low[::-1].tolist(), down.high[::-1].tolist())


def test_where_everything_is_called_one_class_the_band_says_what_was_not_seen():
    labels, p = rows()
    band = mcc_band(labels, p, [0.0, 1.0])
    assert band.mcc.tolist() == [0.0, 0.0]
    assert (band.low < 0).all()
    assert (band.high > 0).all()


def test_copies_in_groups_do_not_narrow_the_band():
    labels, p = rows(100)
    groups = np.arange(100).repeat(30).tolist()
    once = mcc_band(labels, p, [0.5])
    copies = mcc_band(labels.repeat(30), p.repeat(30), [0.5], Resampling(groups))
    believed = mcc_band(labels.repeat(30), p.repeat(30), [0.5])
    assert copies.high - copies.low == pytest.approx(once.high - once.low, abs=1e-9)
    assert (believed.high - believed.low < (once.high - once.low) / 2).all()


def test_threshold_interval_is_that_of_the_thresholds_chosen_anew():
    labels, p = rows(60)
    drawn = [row for weights in draw_weights(units_of(None, 60), 200, seed=1) for row in weights]
    chosen = [threshold_for_prevalence(np.repeat(labels, row), np.repeat(p, row)) for row in drawn]
    expected = np.quantile(chosen, [0.025, 0.975])
    assert threshold_interval(labels, p, Resampling(n_resamples=200, seed=1)) == pytest.approx(tuple(expected))


def test_more_rows_hold_the_threshold_still_and_copies_do_not():
    labels, p = rows(100)
    low, high = threshold_interval(labels, p)
    groups = np.arange(100).repeat(20).tolist()
    assert threshold_interval(labels.repeat(20), p.repeat(20), Resampling(groups)) == pytest.approx((low, high))
    more = threshold_interval(*rows(20_000), Resampling(n_resamples=200))
    assert more[1] - more[0] < (high - low) / 2


def test_resamples_of_one_class_do_not_count():
    labels, p = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9])
    low, high = threshold_interval(labels, p)
    assert 0.5 <= low <= high < 0.9


def test_a_threshold_of_one_class_is_an_error():
    with pytest.raises(DataError, match="both classes"):
        threshold_interval([1, 1], [0.5, 0.6])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_resamples": 1}, "n_resamples"), ({"level": 95}, "level"), ({"groups": ["a"]}, "one group")],
)
def test_options_that_make_no_sense_are_errors(options, message):
    labels, p = rows(20)
    with pytest.raises(DataError, match=message):
        mcc_band(labels, p, [0.5], Resampling(**options))


def test_the_optimum_of_the_band_lies_within_its_interval():
    labels, p = rows()
    threshold = threshold_for_prevalence(labels, p)
    band = mcc_band(labels, p, [threshold])
    assert band.mcc[0] == mcc(confusion_counts(labels, p >= threshold))
    assert band.low[0] < band.mcc[0] < band.high[0]

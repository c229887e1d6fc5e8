import math

import numpy as np
import pytest
from scipy.special import expit

from streetvision.contracts.errors import DataError
from streetvision.eval.bootstrap import Pairing, bootstrap_intervals, mean_difference, paired_difference
from streetvision.eval.metrics import METRICS, all_metrics
from streetvision.eval.resampling import Predictions, Resampling


def intervals_of(labels, p, *, threshold, **how):
    return bootstrap_intervals(labels, Predictions.cut(p, threshold), Resampling(**how))


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, expit(rng.normal(size=n) + 2.5 * (labels - 0.5))


def perfect_rows():
    return np.repeat([0, 1], [82, 78]), np.concatenate([np.zeros(82), np.ones(78)])


def test_every_metric_has_an_interval_around_its_value():
    labels, p = rows()
    found = intervals_of(labels, p, threshold=0.5)
    values = all_metrics(labels, p, p >= 0.5)
    assert list(found) == list(METRICS)
    for name, interval in found.items():
        assert interval.estimate == values[name]
        assert interval.low < interval.estimate < interval.high
        assert interval.high - interval.low < 0.2
        assert not interval.few_units
    assert {found[name].method for name in ("mcc", "recall", "brier", "nll")} == {"bca"}
    assert {found[name].method for name in ("roc_auc", "pr_auc")} == {"logit_normal"}
    assert found["ece"].method == "widened_normal"


def test_the_same_seed_gives_the_same_intervals():
    labels, p = rows()
    first, again, other = (intervals_of(labels, p, threshold=0.5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_higher_level_widens_and_more_rows_narrow():
    labels, p = rows()
    usual = intervals_of(labels, p, threshold=0.5)
    surer = intervals_of(labels, p, threshold=0.5, level=0.99)
    more = intervals_of(np.tile(labels, 9), np.tile(p, 9), threshold=0.5)
    for name in METRICS:
        width = usual[name].high - usual[name].low
        assert surer[name].high - surer[name].low > width
        assert more[name].high - more[name].low < width / 2


def test_copies_in_groups_add_no_certainty():
    labels, p = rows(100)
    groups = np.arange(100).repeat(30).tolist()
    once = intervals_of(labels, p, threshold=0.5)
    copies = intervals_of(labels.repeat(30), p.repeat(30), threshold=0.5, groups=groups)
    believed = intervals_of(labels.repeat(30), p.repeat(30), threshold=0.5)
    for name in METRICS:
        assert (copies[name].low, copies[name].high) == pytest.approx((once[name].low, once[name].high), abs=1e-9)
        assert believed[name].high - believed[name].low < (once[name].high - once[name].low) / 2
    assert copies["mcc"].units == 100


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_model_does_not_get_a_point(name):
    labels, p = perfect_rows()
    found = intervals_of(labels, p, threshold=0.5)[name]
    assert found.method == "unseen"
    assert found.low <= found.estimate <= found.high
    assert found.high - found.low > 0.01


def test_five_positives_that_were_all_found_do_not_give_a_point():
    labels, p = np.repeat([0, 1], [995, 5]), np.concatenate([np.linspace(0, 0.6, 995), np.full(5, 0.9)])
    found = intervals_of(labels, p, threshold=0.5)
    assert found["recall"].low < 0.75
    assert found["recall"].high == found["recall"].estimate == 1.0
    assert found["fnr"].high > 0.25


def test_resamples_without_a_class_do_not_count_as_failures():
    tracks = np.arange(40)
    labels, p = (tracks < 3).astype(int).repeat(10), np.tile(np.linspace(0.05, 0.95, 10), 40)
    p[:30] = np.clip(p[:30] + np.repeat([0.25, 0.35, 0.45], 10), 0, 1)
    found = intervals_of(labels, p, threshold=0.5, groups=tracks.repeat(10).tolist())
    assert (found["recall"].estimate, found["recall"].method) == (0.9, "bca")
    assert found["recall"].low >= 0.8


def test_few_groups_are_flagged():
    labels, p = rows(190)
    groups = (np.arange(190) // 10).tolist()
    assert intervals_of(labels, p, threshold=0.5, groups=groups)["mcc"].few_units
    assert not intervals_of(labels, p, threshold=0.5, groups=[*groups[:-1], "last"])["mcc"].few_units


def test_few_positives_are_flagged_however_many_rows_there_are():
    labels, p = np.repeat([0, 1], [300, 9]), np.linspace(0, 1, 309)
    found = intervals_of(labels, p, threshold=0.5)["mcc"]
    assert (found.units, found.rarer_units, found.few_units) == (309, 9, True)
    assert not intervals_of(np.append(labels, 1), np.append(p, 1), threshold=0.5)["mcc"].few_units


def test_one_group_says_almost_nothing():
    labels, p = rows()
    found = intervals_of(labels, p, threshold=0.5, groups=["ride"] * labels.size)
    for name in METRICS:
        assert found[name].method == "unseen"
        assert found[name].high - found[name].low > 0.3


def test_two_pure_groups_of_one_class_each_survive_resamples_of_one_class():
    labels, p = perfect_rows()
    found = intervals_of(labels, p, threshold=0.5, groups=labels.tolist())
    assert found["roc_auc"].low <= 0.5


def test_one_class_is_defined_or_said_to_be_undefined():
    labels, p = rows()
    found = intervals_of(np.zeros_like(labels), p, threshold=0.5)
    assert found["roc_auc"].method == "undefined"
    assert math.isnan(found["roc_auc"].low)
    assert (found["pr_auc"].low, found["pr_auc"].high) == (0.0, 1.0)
    assert found["mcc"].low < 0 < found["mcc"].high


def test_paired_difference_finds_the_better_model():
    labels, p = rows(600)
    worse = expit(np.log(p / (1 - p)) + np.random.default_rng(1).normal(0, 2, 600))
    found = paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(worse, 0.5))
    for name, metric in METRICS.items():
        difference = found[name]
        assert difference.low <= difference.estimate <= difference.high
        assert name == "ece" or (difference.estimate > 0) == metric.higher_is_better
        assert (difference.p_value < 0.05) == (difference.low > 0 or difference.high < 0)
    assert found["roc_auc"].p_value < 1e-6
    values = all_metrics(labels, p, p >= 0.5)["mcc"] - all_metrics(labels, worse, worse >= 0.5)["mcc"]
    assert found["mcc"].estimate == values


def test_pairing_is_surer_than_two_intervals():
    labels, p = rows(600)
    near = expit(np.log(p / (1 - p)) + np.random.default_rng(1).normal(0, 0.3, 600))
    paired = paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(near, 0.5))["roc_auc"]
    alone = intervals_of(labels, p, threshold=0.5)["roc_auc"]
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_model_against_itself_differs_by_nothing_but_what_is_unseen():
    labels, p = rows()
    for difference in paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(p, 0.5)).values():
        assert (difference.estimate, difference.p_value, difference.method) == (0.0, 1.0, "unseen")
        assert difference.low < 0 < difference.high


def test_right_against_wrong_is_as_sure_as_a_sign_test():
    labels, p = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 0.0, 1.0])
    found = paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(1 - p, 0.5))["accuracy"]
    assert (found.estimate, found.p_value) == (1.0, 2 * 0.5**2)


def test_three_positives_prove_little_however_many_negatives_stand_beside_them():
    labels = np.repeat([0, 1], [997, 3])
    found = paired_difference(labels, Predictions(labels * 1.0, labels), Predictions(labels * 1.0, np.zeros(1000)))[
        "mcc"
    ]
    assert (found.estimate, found.p_value) == (1.0, 0.25)
    assert found.low < 0


def test_two_models_that_call_nothing_positive_may_still_differ_by_far():
    labels, p = np.repeat([0, 1], [900, 100]), np.linspace(0, 0.4, 1000)
    found = paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(p, 0.6))
    assert found["precision"].high == 1.0
    assert found["mcc"].high > 0.15
    assert found["recall"].high == pytest.approx(0.036, abs=1e-3)


def test_exactly_right_probabilities_that_are_nearly_certain_may_have_no_error():
    """Where next to nothing goes wrong, resampling shows hardly any spread."""
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        p = expit(rng.normal(-6, 3.5, 300))
        labels = (rng.random(300) < p).astype(int)
        found = intervals_of(labels, p, threshold=0.5, n_resamples=200)["ece"]
        held.append(found.low == 0 or found.method == "unseen")
    assert np.mean(held) > 0.93


def test_paired_differences_without_both_classes_are_undefined():
    found = paired_difference([1, 1, 1], Predictions.cut([0.1, 0.5, 0.9], 0.5), Predictions.cut([0.2, 0.6, 0.7], 0.5))
    assert found["roc_auc"].method == "undefined"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_resamples": 1}, "n_resamples"), ({"level": 95}, "level"), ({"groups": ["a"]}, "one group a row")],
)
def test_options_that_make_no_sense_are_errors(options, message):
    labels, p = rows(20)
    with pytest.raises(DataError, match=message):
        intervals_of(labels, p, threshold=0.5, **options)
    with pytest.raises(DataError, match=message):
        paired_difference(labels, Predictions.cut(p, 0.5), Predictions.cut(p, 0.4), Resampling(**options))


def test_decisions_need_not_be_a_cut_of_the_probabilities():
    labels, p = rows()
    decisions = np.random.default_rng(5).random(300) < 0.2 + 0.6 * labels
    found = bootstrap_intervals(labels, Predictions(p, decisions))
    values = all_metrics(labels, p, decisions)
    assert {name: interval.estimate for name, interval in found.items()} == values
    assert found["mcc"].low < values["mcc"] < found["mcc"].high
    with pytest.raises(DataError, match="decisions must be one a label"):
        bootstrap_intervals(labels, Predictions(p, [0, 1]))


def noisy(labels, *, seed, scale):
    return Predictions.cut(expit(4 * (labels - 0.5) + np.random.default_rng(seed).normal(0, scale, labels.size)), 0.5)


def test_the_mean_over_one_test_set_is_its_difference():
    labels, _ = rows()
    a, b = noisy(labels, seed=1, scale=2), noisy(labels, seed=2, scale=4)
    assert mean_difference([Pairing(labels, a, b)]) == paired_difference(labels, a, b)


def test_a_test_set_that_stands_twice_is_no_second_one_when_its_groups_say_so():
    labels, _ = rows()
    pairing = Pairing(labels, noisy(labels, seed=1, scale=2), noisy(labels, seed=2, scale=4))
    once = mean_difference([pairing])["mcc"]
    same = list(range(labels.size))
    twice = mean_difference([pairing, pairing], Resampling([*same, *same]))["mcc"]
    apart = mean_difference([pairing, pairing])["mcc"]
    assert twice.estimate == pytest.approx(once.estimate)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / math.sqrt(2), rel=0.15)

import math

import numpy as np
import pytest
from scipy.special import expit

from streetvision.contracts.errors import DataError
from streetvision.eval.bootstrap import PairedPredictions, bootstrap_intervals, mean_difference, paired_difference
from streetvision.eval.metrics import METRICS, all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling


def intervals_of(labels, p, *, groups=None, **options):
    return bootstrap_intervals(Predictions.at_threshold(labels, p, 0.5, groups), Resampling(**options))


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, expit(rng.normal(size=n) + 2.5 * (labels - 0.5))


def perfect_rows():
    return np.repeat([0, 1], [82, 78]), np.concatenate([np.zeros(82), np.ones(78)])


def test_every_metric_has_an_interval_around_its_value():
    labels, p = rows()
    found = intervals_of(labels, p)
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
    first, again, other = (intervals_of(labels, p, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_higher_level_widens_and_more_rows_narrow():
    labels, p = rows()
    usual = intervals_of(labels, p)
    surer = intervals_of(labels, p, level=0.99)
    more = intervals_of(np.tile(labels, 9), np.tile(p, 9))
    for name in METRICS:
        width = usual[name].high - usual[name].low
        assert surer[name].high - surer[name].low > width
        assert more[name].high - more[name].low < width / 2


def test_copies_in_groups_do_not_narrow_the_intervals():
    labels, p = rows(100)
    groups = np.arange(100).repeat(30).tolist()
    once = intervals_of(labels, p)
    copies = intervals_of(labels.repeat(30), p.repeat(30), groups=groups)
    rows_alone = intervals_of(labels.repeat(30), p.repeat(30))
    for name in METRICS:
        assert (copies[name].low, copies[name].high) == pytest.approx((once[name].low, once[name].high), abs=1e-9)
        assert rows_alone[name].high - rows_alone[name].low < (once[name].high - once[name].low) / 2
    assert copies["mcc"].units == 100


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_model_has_an_interval_of_some_width(name):
    labels, p = perfect_rows()
    found = intervals_of(labels, p)[name]
    assert found.method == "no_spread"
    assert found.low <= found.estimate <= found.high
    assert found.high - found.low > 0.01


def test_five_positives_that_were_all_found_do_not_give_a_point():
    labels, p = np.repeat([0, 1], [995, 5]), np.concatenate([np.linspace(0, 0.6, 995), np.full(5, 0.9)])
    found = intervals_of(labels, p)
    assert found["recall"].low < 0.75
    assert found["recall"].high == found["recall"].estimate == 1.0
    assert found["fnr"].high > 0.25


def test_resamples_without_a_class_do_not_count_as_failures():
    tracks = np.arange(40)
    labels, p = (tracks < 3).astype(int).repeat(10), np.tile(np.linspace(0.05, 0.95, 10), 40)
    p[:30] = np.clip(p[:30] + np.repeat([0.25, 0.35, 0.45], 10), 0, 1)
    found = intervals_of(labels, p, groups=tracks.repeat(10).tolist())
    assert (found["recall"].estimate, found["recall"].method) == (0.9, "bca")
    assert found["recall"].low >= 0.8


def test_few_groups_are_flagged():
    labels, p = rows(190)
    groups = (np.arange(190) // 10).tolist()
    assert intervals_of(labels, p, groups=groups)["mcc"].few_units
    assert not intervals_of(labels, p, groups=[*groups[:-1], "last"])["mcc"].few_units


def test_few_positives_are_flagged_however_many_rows_there_are():
    labels, p = np.repeat([0, 1], [300, 9]), np.linspace(0, 1, 309)
    found = intervals_of(labels, p)["mcc"]
    assert (found.units, found.rarer_units, found.few_units) == (309, 9, True)
    assert not intervals_of(np.append(labels, 1), np.append(p, 1))["mcc"].few_units


def test_one_group_gives_wide_intervals():
    labels, p = rows()
    found = intervals_of(labels, p, groups=["ride"] * labels.size)
    for name in METRICS:
        assert found[name].method == "no_spread"
        assert found[name].high - found[name].low > 0.3


def test_two_pure_groups_of_one_class_each_survive_resamples_of_one_class():
    labels, p = perfect_rows()
    found = intervals_of(labels, p, groups=labels.tolist())
    assert found["roc_auc"].low <= 0.5


def test_metrics_of_one_class_are_defined_or_marked_undefined():
    labels, p = rows()
    found = intervals_of(np.zeros_like(labels), p)
    assert found["roc_auc"].method == "undefined"
    assert math.isnan(found["roc_auc"].low)
    assert (found["pr_auc"].low, found["pr_auc"].high) == (0.0, 1.0)
    assert found["mcc"].low < 0 < found["mcc"].high


def test_paired_difference_finds_the_better_model():
    labels, p = rows(600)
    worse = expit(np.log(p / (1 - p)) + np.random.default_rng(1).normal(0, 2, 600))
    found = paired_difference(Predictions(labels, p), Predictions(labels, worse))
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
    paired = paired_difference(Predictions(labels, p), Predictions(labels, near))["roc_auc"]
    alone = intervals_of(labels, p)["roc_auc"]
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_model_against_itself_differs_by_nothing_but_what_is_unseen():
    labels, p = rows()
    for difference in paired_difference(Predictions(labels, p), Predictions(labels, p)).values():
        assert (difference.estimate, difference.p_value, difference.method) == (0.0, 1.0, "no_spread")
        assert difference.low < 0 < difference.high


def test_right_against_wrong_is_as_sure_as_a_sign_test():
    labels, p = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 0.0, 1.0])
    found = paired_difference(Predictions(labels, p), Predictions(labels, 1 - p))["accuracy"]
    assert (found.estimate, found.p_value) == (1.0, 2 * 0.5**2)


def test_three_positives_prove_little_with_any_number_of_negatives():
    labels = np.repeat([0, 1], [997, 3])
    variant, baseline = (Predictions(labels, labels, decisions=decisions) for decisions in (labels, np.zeros(1000)))
    found = paired_difference(variant, baseline)["mcc"]
    assert (found.estimate, found.p_value) == (1.0, 0.25)
    assert found.low < 0


def test_two_models_that_call_nothing_positive_may_still_differ_by_far():
    labels, p = np.repeat([0, 1], [900, 100]), np.linspace(0, 0.4, 1000)
    found = paired_difference(*(Predictions.at_threshold(labels, p, threshold) for threshold in (0.5, 0.6)))
    assert found["precision"].high == 1.0
    assert found["mcc"].high > 0.15
    assert found["recall"].high == pytest.approx(0.036, abs=1e-3)


def test_exactly_right_probabilities_that_are_nearly_certain_may_have_no_error():
    """Where next to nothing goes wrong, resampling shows hardly any spread."""
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        p = expit(rng.normal(-6, 3.5, 300))
        labels = (rng.random(300) < p).astype(int)
        found = intervals_of(labels, p, n_resamples=200)["ece"]
        held.append(found.low == 0 or found.method == "no_spread")
    assert np.mean(held) > 0.93


def test_paired_differences_without_both_classes_are_undefined():
    found = paired_difference(Predictions([1, 1, 1], [0.1, 0.5, 0.9]), Predictions([1, 1, 1], [0.2, 0.6, 0.7]))
    assert found["roc_auc"].method == "undefined"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_resamples": 1}, "n_resamples"), ({"level": 95}, "level"), ({"groups": ["a"]}, "one group per row")],
)
def test_invalid_options_are_errors(options, message):
    labels, p = rows(20)
    with pytest.raises(DataError, match=message):
        intervals_of(labels, p, **options)


def test_a_pair_must_have_the_same_labels_and_groups():
    labels, p = rows(20)
    with pytest.raises(DataError):
        paired_difference(Predictions(labels, p), Predictions(1 - labels, p))
    with pytest.raises(DataError):
        paired_difference(Predictions(labels, p), Predictions(labels, p, list(range(20))))


def test_decisions_need_not_follow_from_one_threshold():
    labels, p = rows()
    decisions = np.random.default_rng(5).random(300) < 0.2 + 0.6 * labels
    found = bootstrap_intervals(Predictions(labels, p, decisions=decisions))
    values = all_metrics(labels, p, decisions)
    assert {name: interval.estimate for name, interval in found.items()} == values
    assert found["mcc"].low < values["mcc"] < found["mcc"].high


def noisy(labels, *, seed, scale, groups=None):
    noise = np.random.default_rng(seed).normal(0, scale, labels.size)
    return Predictions(labels, expit(4 * (labels - 0.5) + noise), groups)


def test_the_mean_over_one_test_set_is_its_difference():
    labels, _ = rows()
    a, b = noisy(labels, seed=1, scale=2), noisy(labels, seed=2, scale=4)
    assert mean_difference([PairedPredictions(a, b)]) == paired_difference(a, b)


def test_a_repeated_test_set_adds_no_information_if_its_groups_are_the_same():
    labels, _ = rows()

    def pair(groups):
        return PairedPredictions(*(noisy(labels, seed=s, scale=2 * s, groups=groups) for s in (1, 2)))

    once = mean_difference([pair(None)])["mcc"]
    same = pair(list(range(labels.size)))
    twice = mean_difference([same, same])["mcc"]
    apart = mean_difference([pair(None), pair(None)])["mcc"]
    assert twice.estimate == pytest.approx(once.estimate)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / math.sqrt(2), rel=0.15)

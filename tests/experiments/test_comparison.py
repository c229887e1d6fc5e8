from dataclasses import replace

import numpy as np
import pytest

from streetvision.eval.metrics import all_metrics
from streetvision.experiments.ablation_page import as_csv, as_markdown, left_out, summary_lines
from streetvision.experiments.ablation_table import Arm, Pair
from streetvision.experiments.comparison import ArmResult, ComparisonSettings, PairResults, compare
from streetvision.io.predictions import PolicyPredictions

PAIR = Pair(name="thing", variant=Arm(settings=("x=1",)), expected={"mcc": "+6 to 8 %"})
SETTINGS = ComparisonSettings(comparisons=4, n_resamples=200)


def result(seed, *, noise, cost=10.0, n=200):
    """An arm on the split of `seed`: the higher the noise, the worse."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(np.int64)
    p = np.clip(labels * 0.6 + 0.2 + np.random.default_rng(seed + 99).normal(0, noise, n), 0, 1)
    paths = [f"{seed % 2}/{i}.jpg" for i in range(n)]
    return ArmResult(
        PolicyPredictions("scrc", "single_view", True, paths, labels, [None] * n, p, p >= 0.5), 4 * n, cost
    )


def results(seeds=(0, 1, 2), *, noise=(0.5, 0.2), costs=(10.0, 30.0)):
    splits = {s: tuple(result(s, noise=noise[k], cost=costs[k]) for k in (0, 1)) for s in seeds}
    return PairResults("scenes", PAIR, splits)


def by_name(rows):
    return {row.quantity: row for row in rows}


def mean_mcc(side):
    values = []
    for arms in results().splits.values():
        a = arms[side].predictions
        values.append(all_metrics(a.labels, a.probabilities, a.decisions)["mcc"])
    return np.mean(values)


def test_the_difference_is_the_mean_over_splits_with_both_intervals_around_it():
    row = by_name(compare(results(), SETTINGS))["mcc"]
    assert row.baseline == pytest.approx(mean_mcc(0))
    assert row.difference == pytest.approx(mean_mcc(1) - mean_mcc(0))
    for low, high in (row.split_interval, row.image_interval):
        assert low < row.difference < high
    assert row.image_interval[0] > 0
    assert row.expected == "+6 to 8 %"


def test_cost_is_a_ratio_and_the_quantities_are_all_there():
    rows = by_name(compare(results(), SETTINGS))
    assert list(rows) == ["mcc", "ece", "reward", "cost"]
    assert rows["cost"].difference == pytest.approx(3.0)
    assert rows["cost"].split_interval is None
    assert rows["reward"].difference > 0
    assert rows["reward"].image_interval is None


def test_more_comparisons_widen_every_interval():
    few, many = (by_name(compare(results(), replace(SETTINGS, comparisons=m)))["mcc"] for m in (1, 30))
    for name in ("split_interval", "image_interval"):
        (low, high), (lower, higher) = getattr(few, name), getattr(many, name)
        assert lower < low < high < higher


def test_the_same_arm_twice_shows_nothing():
    rows = by_name(compare(results(noise=(0.3, 0.3), costs=(10.0, 10.0)), SETTINGS))
    assert rows["mcc"].difference == rows["ece"].difference == 0
    assert not any(row.significant for row in rows.values())


def test_an_unknown_cost_leaves_its_split_out_of_the_cost_alone():
    found = results()
    a, b = found.splits[1]
    rows = by_name(compare(replace(found, splits={**found.splits, 1: (a, replace(b, cost=None))}), SETTINGS))
    assert (rows["cost"].splits, rows["mcc"].splits) == (2, 3)


def test_a_split_on_different_images_is_left_out_and_the_others_are_compared():
    found = results()
    a, _ = found.splits[0]
    rows = compare(replace(found, splits={**found.splits, 0: (a, found.splits[1][1])}), SETTINGS)
    assert by_name(rows)["mcc"].splits == 2
    assert left_out(rows)[0].startswith("thing on scenes, seed 0: the arms have different images")
    assert by_name(compare(replace(found, splits={0: (a, found.splits[1][1])}), SETTINGS))["mcc"].difference is None


def test_the_table_tells_what_was_measured_and_what_was_not():
    rows = [
        *compare(results(), SETTINGS),
        *compare(PairResults("other", PAIR, {}, ("seed 0, variant: it broke",)), SETTINGS),
    ]
    text = as_markdown(rows, SETTINGS, {"scenes, seed 0": 2})
    assert "at 98.75%" in text
    assert "accessed 2 times" in text
    assert "| scenes | thing | MCC |" in text
    assert "+6 to 8 %" in text
    assert "not measured" in text
    assert "Left out: thing on other, seed 0, variant: it broke." in text
    assert len(as_csv(rows).splitlines()) == 9
    lines = dict(enumerate(summary_lines(rows)))
    assert lines[0][1].startswith("scenes: MCC +")
    assert lines[1] == ("thing", "other: nothing was measured")

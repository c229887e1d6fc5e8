"""The gate: a candidate against its baseline, with a bound by groups."""

import numpy as np
import pytest

from streetvision.contracts.errors import DataError
from streetvision.eval.gate import compare_nll
from streetvision.eval.predictions import Predictions


def drawn(n=200, sharpness=1.0, seed=0, groups=None):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    margins = sharpness * (2 * labels - 1) + generator.normal(size=n)
    return Predictions(labels, 1 / (1 + np.exp(-margins)), groups)


def test_a_better_candidate_is_accepted_and_a_worse_one_is_not():
    good, poor = drawn(sharpness=2.0), drawn(sharpness=0.2)
    decision = compare_nll(good, poor)
    assert decision.accepted
    assert decision.difference < decision.bound < 0
    assert decision.difference == pytest.approx(decision.candidate_nll - decision.baseline_nll)
    assert not compare_nll(poor, good).accepted


def test_the_same_model_is_not_accepted():
    model = drawn()
    decision = compare_nll(model, model)
    assert (decision.difference, decision.bound, decision.accepted) == (0.0, 0.0, False)


def test_a_gain_that_is_certain_and_tiny_is_not_accepted():
    model = drawn()
    p = np.clip(model.probabilities, 0.01, 0.99)
    gain = np.where(model.labels == 1, 1e-4, -1e-4)
    decision = compare_nll(Predictions(model.labels, p + gain), Predictions(model.labels, p))
    assert -0.001 < decision.difference < decision.bound < 0
    assert not decision.accepted


def test_a_candidate_that_predicts_nothing_is_not_accepted():
    labels = np.arange(200) % 2
    baseline = Predictions(labels, np.where(labels == 1, 0.2, 0.8))
    for p, accepted in ((0.4, False), (0.5, False), (0.6, True)):
        decision = compare_nll(Predictions(labels, np.where(labels == 1, p, 1 - p)), baseline, level=0.5)
        assert decision.bound < 0
        assert decision.accepted == accepted


def test_dependent_rows_widen_the_bound():
    groups = [row // 20 for row in range(200)]
    generator = np.random.default_rng(1)
    shift = generator.normal(size=10)[np.repeat(range(10), 20)]  # one error for the whole group
    labels = np.arange(200) % 2
    margins = (2 * labels - 1) * (1 + shift)
    p, base = 1 / (1 + np.exp(-margins)), np.full(200, 0.5)
    alone = compare_nll(Predictions(labels, p), Predictions(labels, base))
    grouped = compare_nll(Predictions(labels, p, groups), Predictions(labels, base, groups))
    assert (alone.units, grouped.units) == (200, 10)
    assert grouped.difference == pytest.approx(alone.difference)
    assert grouped.bound > alone.bound


def test_without_a_difference_it_accepts_at_the_stated_rate():
    """With 80 % confidence, a candidate of the same quality is accepted in about 20 % of cases."""
    accepted = sum(compare_nll(drawn(seed=2 * n), drawn(seed=2 * n + 1)).accepted for n in range(300))
    assert 0.12 < accepted / 300 < 0.29


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="different"):
        compare_nll(drawn(20), drawn(22))
    with pytest.raises(DataError, match="two groups"):
        compare_nll(drawn(20, groups=["a"] * 20), drawn(20, groups=["a"] * 20))

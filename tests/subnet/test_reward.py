"""The reward of the subnet against a replay of its written rules, one answer at a time."""

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_reward import PUBLISHED, means_of_streams
from streetvision.contracts.errors import DataError
from streetvision.subnet.reward import Challenges, best_threshold, final_score, moving_average, rewards

NO_RESPONSE = -1


class Window:
    """The last answers of a miner, counted by (label, prediction) as they come and go; None is left out."""

    def __init__(self, size):
        self.size, self.slots, self.of = size, deque(), Counter()

    def add(self, pair):
        self.slots.append(pair)
        self.of[pair] += 1
        if len(self.slots) > self.size:
            self.of[self.slots.popleft()] -= 1

    def mcc(self):
        tp, tn, fp, fn = (self.of[pair] for pair in ((1, 1), (0, 0), (0, 1), (1, 0)))
        if 0 in (tp + fn, tn + fp, tp + fp, tn + fn):
            return 0.0
        return max(0.0, (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    def accuracy(self):
        told = len(self.slots) - self.of[None]
        return (self.of[1, 1] + self.of[0, 0]) / told if told else 0.0


def replayed(labels, answers):
    """The rules as they are written, one answer at a time on Python numbers: rewards and scores of one stream."""
    long, short, spoiled, score = Window(100), Window(10), 0, 0.0
    earned, scores = [], []
    for label, answer in zip(labels, answers, strict=True):
        prediction = None if answer == NO_RESPONSE else round(answer)  # as np.round: half to even
        pair = (label, prediction) if prediction in (0, 1) else None
        long.add(pair)
        short.add(pair)
        base = 0.5 * long.mcc() + 0.5 * short.accuracy()
        reward = base * base * base if prediction is not None and 0 <= answer <= 1 and not spoiled else 0.0
        spoiled = 98 if prediction not in (None, 0, 1) else max(spoiled - 1, 0)
        score = 0.05 * reward + 0.95 * score
        earned.append(reward)
        scores.append(score)
    return earned, scores


def random_stream(rng, steps=250):
    """Labels and answers of every kind: long runs of one class, halves, timeouts, nonsense."""
    labels = rng.integers(0, 2, steps)
    if rng.random() < 0.3:
        labels[: rng.integers(0, steps)] = rng.integers(0, 2)
    skill = rng.uniform(0.3, 1.0)
    answers = np.where(rng.random(steps) < skill, labels, 1 - labels).astype(float)
    answers = np.where(rng.random(steps) < 0.5, np.abs(answers - rng.uniform(0, 0.45, steps)), answers)
    strange = rng.random(steps) < rng.choice([0.0, 0.02, 0.2])
    kinds = np.array([NO_RESPONSE, 0.5, 1.7, -0.3, 1.2, 1.5, -0.6, 2.5, 0.0, 1.0])
    spoiling = rng.random() < 0.5
    pool = kinds if spoiling else kinds[[0, 1, 3, 4, 8, 9]]
    answers = np.where(strange, rng.choice(pool, steps), answers)
    if rng.random() < 0.2:
        answers[: rng.integers(0, steps)] = rng.choice([0.0, 1.0, -1.0])
    return labels, answers


def test_rewards_and_scores_equal_a_replay_of_the_rules_on_1000_streams_exactly():
    rng = np.random.default_rng(0)
    labels, answers = (np.array(part) for part in zip(*(random_stream(rng) for _ in range(1000)), strict=True))
    earned = rewards(labels, answers)
    scores = moving_average(earned)
    for stream in range(1000):
        expected = replayed(labels[stream].tolist(), answers[stream].tolist())
        assert (earned[stream].tolist(), scores[stream].tolist()) == expected
    assert 0.1 < np.mean(earned == 0) < 0.9


@pytest.mark.parametrize(("rates", "mean"), PUBLISHED.items())
def test_the_reference_means_are_reproduced(rates, mean):
    """No error is written beside them: they must lie where the mean of one stream of 1,000 challenges does."""
    *rates, late = rates
    found = means_of_streams(*rates, late=late)
    assert mean == pytest.approx(found.mean(), abs=2 * found.std())


def test_1_7_keeps_the_reward_at_0_for_98_more_challenges():
    labels = np.tile([0, 1], 200)
    answers = labels.astype(float)
    answers[150] = 1.7
    earned = rewards(labels, answers)
    assert np.flatnonzero(earned[2:] == 0).tolist() == list(range(148, 148 + 99))


def test_a_half_is_no_roadwork_and_less_than_a_half_above_1_still_names_a_class():
    labels = np.tile([0, 1], 60)
    halves = np.where(labels == 0, 0.5, 1.0)
    assert rewards(labels, halves)[-1] == 1.0
    above = halves.copy()
    above[60] = 1.3
    earned = rewards(labels, above)
    assert earned[60] == 0.0
    assert earned[61] < 1.0  # label 0, called roadwork: it counts


def test_not_answering_uses_the_slot_and_spares_the_metrics():
    labels = np.tile([0, 1], 60)
    answers = labels.astype(float)
    answers[100:109] = NO_RESPONSE
    earned = rewards(labels, answers)
    assert not earned[100:109].any()
    assert earned[109] == 1.0
    assert np.array_equal(rewards(labels, np.where(answers == NO_RESPONSE, np.nan, answers)), earned)


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 150))
def test_what_comes_later_changes_no_earlier_reward(seed, cut):
    labels, answers = random_stream(np.random.default_rng(seed), steps=160)
    assert np.array_equal(rewards(labels, answers)[:cut], rewards(labels[:cut], answers[:cut]))


def test_the_best_threshold_parts_the_classes():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    p = np.where(labels == 1, rng.uniform(0.7, 0.9, 400), rng.uniform(0.1, 0.65, 400))
    challenges = Challenges.draw(labels, streams=20, steps=200, seed=0)
    found = best_threshold(p, challenges)
    assert np.mean((p >= found) == labels) > 0.99


def test_the_standing_is_that_of_the_last_score():
    earned = rewards(np.tile([0, 1], (7, 300)), np.tile([0.0, 1.0], (7, 300)))
    found = final_score(earned)
    assert (found.mean, found.p5, found.p95) == pytest.approx((1.0, 1.0, 1.0))


def test_one_class_only_and_other_labels_are_errors():
    with pytest.raises(DataError, match="one class only"):
        Challenges.draw([1, 1], streams=2, steps=3, seed=0)
    with pytest.raises(DataError, match="a label 0 or 1"):
        rewards([0, 2], [0.1, 0.2])

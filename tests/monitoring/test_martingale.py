"""The test of exchangeability against a slow reference, and its independence of how the stream is divided."""

import numpy as np
import pytest

from streetvision.monitoring.martingale import (
    BET_BLOCK,
    BINS,
    RATES,
    ExchangeabilityTest,
    bets,
    bin_values,
)


def slow_p_value(earlier, value, uniform):
    greater, equal = sum(e > value for e in earlier), sum(e == value for e in earlier)
    return (greater + uniform * (equal + 1)) / (len(earlier) + 1)


def test_p_values_are_the_smoothed_ranks_among_all_earlier_values():
    rng = np.random.default_rng(0)
    reference, stream = rng.integers(0, 50, 40), rng.integers(0, 50, 300)
    test = ExchangeabilityTest(3, np.bincount(reference, minlength=BINS))
    earlier = list(reference)
    uniform = np.concatenate([np.random.default_rng([3, block]).random(256) for block in range(2)])
    for start in (0, 100, 256):
        part = stream[start : {0: 100, 100: 256, 256: 300}[start]]
        p = test._p_values(part)
        test.steps += len(part)
        for offset, value in enumerate(part):
            assert p[offset] == pytest.approx(slow_p_value(earlier, value, uniform[start + offset]))
            earlier.append(value)


def slow_capital(p):
    """The martingale one value at a time, with capital that moves at the end of each block."""
    prior = np.full(bets(p[:1]).shape[1], 0.5 / (bets(p[:1]).shape[1] - 1))
    prior[0] = 0.5
    path, capitals = [], [prior.copy() for _ in RATES]
    for t, density in enumerate(bets(p), start=1):
        capitals = [capital * density for capital in capitals]
        path.append(np.mean([capital.sum() for capital in capitals]))
        if t % BET_BLOCK == 0:
            moved = [1 - (1 - rate) ** BET_BLOCK for rate in RATES]
            capitals = [(1 - m) * c + m * c.sum() * prior for m, c in zip(moved, capitals, strict=True)]
    return np.log(path)


def test_martingale_equals_slow_reference():
    p = np.random.default_rng(1).beta(0.8, 1.3, size=150)
    assert ExchangeabilityTest(0)._bet(p) == pytest.approx(slow_capital(p))


def test_every_bet_is_a_density():
    p = (np.arange(100_000) + 0.5) / 100_000
    means = bets(p).mean(axis=0)
    assert (bets(p) >= 0).all()
    assert means == pytest.approx(1, abs=0.05)
    assert (means < 1.0001).all()  # never above 1, or the false alarms would be more


def test_result_does_not_depend_on_the_calls():
    bins = bin_values(np.random.default_rng(0).normal(size=1000), -4, 4)
    whole, parts = ExchangeabilityTest(5), ExchangeabilityTest(5)
    path = whole.update(bins)
    divided = np.concatenate([parts.update(part) for part in np.split(bins, [1, 17, 300, 301, 900])])
    assert divided == pytest.approx(path)
    assert parts.log_value == pytest.approx(whole.log_value)
    assert parts.log_max == pytest.approx(whole.log_max)


def test_shift_is_found_and_its_absence_is_not():
    rng = np.random.default_rng(2)
    calm = ExchangeabilityTest(0)
    calm.update(bin_values(rng.normal(size=4000), -6, 6))
    moved = ExchangeabilityTest(0)
    moved.update(bin_values(np.concatenate([rng.normal(size=1000), rng.normal(1, 1, size=500)]), -6, 6))
    assert calm.log_max < np.log(100)
    assert moved.log_max > np.log(1e6)


def test_values_outside_the_grid_are_in_its_last_bins():
    assert bin_values(np.array([-99.0, 99.0]), -1, 1).tolist() == [0, BINS - 1]

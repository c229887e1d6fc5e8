import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.data.splitting.stratified import MAX_KINDS, allocate, assign_groups, rows_per_split

SHARES = np.array([0.60, 0.15, 0.15, 0.10])
NO_SINGLES = np.zeros(2, dtype=np.int64)


def cost(counts: np.ndarray, roles: np.ndarray) -> float:
    targets = SHARES[:, None] * counts.sum(axis=0)
    rows = rows_per_split(counts, roles, len(SHARES))
    return ((rows - targets) ** 2 / targets).sum() + 1e9 * (rows == 0).sum()


def uneven(rng: np.random.Generator, groups: int) -> np.ndarray:
    return np.maximum(1, rng.lognormal(2.5, 1, (groups, 2))).astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_the_assignment_of_few_groups_is_nearly_optimal(seed):
    """Compared with all 4^7 assignments of 7 groups."""
    counts = uneven(np.random.default_rng(seed), 7)
    every = itertools.product(range(4), repeat=len(counts))
    best = min(cost(counts, np.array(roles)) for roles in every)
    assert cost(counts, assign_groups(counts, SHARES, singles=NO_SINGLES)) <= 1.3 * best


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=6, max_size=14))
@settings(max_examples=30, deadline=None)
def test_no_move_and_no_exchange_reduces_the_cost(sizes):
    counts = np.array([*sizes, (1, 1)])
    roles = assign_groups(counts, SHARES, singles=NO_SINGLES)
    lowest = cost(counts, roles)
    for group, split in itertools.product(range(len(counts)), range(4)):
        moved = roles.copy()
        moved[group] = split
        assert cost(counts, moved) > lowest - 1e-5
    for first, second in itertools.combinations(range(len(counts)), 2):
        swapped = roles.copy()
        swapped[[first, second]] = roles[[second, first]]
        assert cost(counts, swapped) > lowest - 1e-5


def many_kinds(rare: list[int]) -> np.ndarray:
    """More kinds of groups than are exchanged, and a second class in few groups with the sizes `rare`."""
    sizes = np.arange(1, MAX_KINDS + 100)
    return np.concatenate([np.column_stack([sizes, 0 * sizes]), np.column_stack([np.zeros(len(rare), int), rare])])


def test_a_rare_class_reaches_every_split_without_exchanges():
    counts = many_kinds([300, 200, 200, 200])
    rows = rows_per_split(counts, assign_groups(counts, SHARES, singles=NO_SINGLES), 4)
    assert (rows > 0).all()


def test_with_single_rows_no_group_has_to_fill_a_missing_class():
    counts = many_kinds([300, 200, 200, 200])
    roles = assign_groups(counts, SHARES, singles=np.array([0, 50]))
    assert (rows_per_split(counts, roles, 4)[:, 1] == 0).any()


def test_small_groups_compensate_for_large_ones():
    counts = many_kinds([40] * 100)
    rows = rows_per_split(counts, assign_groups(counts, SHARES, singles=NO_SINGLES), 4)
    assert np.abs(rows[:, 0] - SHARES * counts[:, 0].sum()).max() <= 2


@given(total=st.integers(0, 500), parts=st.lists(st.integers(1, 30), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_allocated_rows_are_within_one_of_the_target(total, parts):
    targets = np.array(parts) / sum(parts) * total
    quotas = allocate(total, targets, missing=np.zeros(4, dtype=bool))
    assert quotas.sum() == total
    assert np.abs(quotas - targets).max() < 1


def test_allocation_by_largest_remainder():
    assert allocate(10, np.array([4.4, 2.7, 1.6, 1.3]), missing=np.zeros(4, dtype=bool)).tolist() == [4, 3, 2, 1]


def test_a_split_without_the_class_gets_a_row_first():
    missing = np.array([False, True, False, True])
    assert allocate(5, np.array([5.0, 0.0, 0.0, 0.0]), missing=missing).tolist() == [3, 1, 0, 1]


def test_a_split_that_is_too_large_already_gets_nothing():
    quotas = allocate(10, np.array([-20.0, 15.0, 10.0, 5.0]), missing=np.zeros(4, dtype=bool))
    assert quotas.tolist() == [0, 5, 3, 2]

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.data.splitting.stratified import MAX_KINDS, allocate, assign_groups, rows_held

SHARES = np.array([0.60, 0.15, 0.15, 0.10])
NO_SINGLES = np.zeros(2, dtype=np.int64)


def misfit(counts: np.ndarray, roles: np.ndarray) -> float:
    targets = SHARES[:, None] * counts.sum(axis=0)
    held = rows_held(counts, roles, len(SHARES))
    return ((held - targets) ** 2 / targets).sum() + 1e9 * (held == 0).sum()


def uneven(rng: np.random.Generator, groups: int) -> np.ndarray:
    return np.maximum(1, rng.lognormal(2.5, 1, (groups, 2))).astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_a_few_groups_are_dealt_nearly_as_well_as_can_be(seed):
    """All 4^7 dealings of 7 groups are tried."""
    counts = uneven(np.random.default_rng(seed), 7)
    every = itertools.product(range(4), repeat=len(counts))
    best = min(misfit(counts, np.array(roles)) for roles in every)
    assert misfit(counts, assign_groups(counts, SHARES, singles=NO_SINGLES)) <= 1.3 * best


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=6, max_size=14))
@settings(max_examples=30, deadline=None)
def test_no_move_and_no_exchange_is_left_that_helps(sizes):
    counts = np.array([*sizes, (1, 1)])
    roles = assign_groups(counts, SHARES, singles=NO_SINGLES)
    found = misfit(counts, roles)
    for one, split in itertools.product(range(len(counts)), range(4)):
        moved = roles.copy()
        moved[one] = split
        assert misfit(counts, moved) > found - 1e-5
    for one, other in itertools.combinations(range(len(counts)), 2):
        swapped = roles.copy()
        swapped[[one, other]] = roles[[other, one]]
        assert misfit(counts, swapped) > found - 1e-5


def many_kinds(rare: list[int]) -> np.ndarray:
    """More kinds of groups than are exchanged, and a second class in the few groups of `rare`."""
    sizes = np.arange(1, MAX_KINDS + 100)
    return np.concatenate([np.column_stack([sizes, 0 * sizes]), np.column_stack([np.zeros(len(rare), int), rare])])


def test_a_rare_class_reaches_every_split_without_exchanges():
    counts = many_kinds([300, 200, 200, 200])
    held = rows_held(counts, assign_groups(counts, SHARES, singles=NO_SINGLES), 4)
    assert (held > 0).all()


def test_single_rows_spare_a_group_from_filling_a_gap():
    counts = many_kinds([300, 200, 200, 200])
    roles = assign_groups(counts, SHARES, singles=np.array([0, 50]))
    assert (rows_held(counts, roles, 4)[:, 1] == 0).any()


def test_large_groups_first_leaves_small_ones_to_even_out():
    counts = many_kinds([40] * 100)
    held = rows_held(counts, assign_groups(counts, SHARES, singles=NO_SINGLES), 4)
    assert np.abs(held[:, 0] - SHARES * counts[:, 0].sum()).max() <= 2


@given(total=st.integers(0, 500), parts=st.lists(st.integers(1, 30), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_apportioned_rows_are_within_one_of_what_was_wanted(total, parts):
    wanted = np.array(parts) / sum(parts) * total
    quotas = allocate(total, wanted, lacking=np.zeros(4, dtype=bool))
    assert quotas.sum() == total
    assert np.abs(quotas - wanted).max() < 1


def test_apportioning_by_largest_remainder():
    assert allocate(10, np.array([4.4, 2.7, 1.6, 1.3]), lacking=np.zeros(4, dtype=bool)).tolist() == [4, 3, 2, 1]


def test_a_split_that_lacks_the_class_gets_a_row_first():
    lacking = np.array([False, True, False, True])
    assert allocate(5, np.array([5.0, 0.0, 0.0, 0.0]), lacking=lacking).tolist() == [3, 1, 0, 1]


def test_what_groups_overfilled_gets_nothing():
    quotas = allocate(10, np.array([-20.0, 15.0, 10.0, 5.0]), lacking=np.zeros(4, dtype=bool))
    assert quotas.tolist() == [0, 5, 3, 2]

"""How groups and single rows are dealt to splits, in numbers alone: no rows, no names, no randomness.

Legend: G groups, S splits, C classes. Counts are rows: (G, C) of each group, (S, C) of each split.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Amounts = npt.NDArray[np.float64]

LACKS_CLASS = 1e9
"""Misfit that a split has for each class it lacks: more than any proportions cost."""
MAX_KINDS = 500
"""Groups are exchanged only where fewer kinds of them are: among more, dealing them in turn leaves little to gain."""
MAX_EXCHANGES = 200


def assign_groups(counts: Counts, shares: Amounts, *, singles: Counts, kept: Counts | None = None) -> Counts:
    """The split (G,) of every group, given its rows (G, C) and the splits' shares (S,), which sum to 1.

    `kept` (S, C) rows are in the splits already and stay there (none by default); the groups even out what they
    left.

    Greedy: the largest group first, each to the split where it lessens the deviation most; equals in the order given.
    A class with no more units left than splits that lack it goes to one of these; `singles` (C,) rows come later and
    count as units. Then groups are exchanged for as long as that helps.
    """
    kept = np.zeros((len(shares), counts.shape[1]), dtype=np.int64) if kept is None else kept
    targets = shares[:, None] * (counts.sum(axis=0) + kept.sum(axis=0))
    roles = np.zeros(len(counts), dtype=np.int64)
    held = kept.copy()
    units_left = (counts > 0).sum(axis=0) + singles
    for group in np.argsort(-counts.sum(axis=1), kind="stable"):
        lacking = held == 0
        urgent = (counts[group] > 0) & (lacking.sum(axis=0) >= units_left)
        change = _deviation(held + counts[group], targets) - _deviation(held, targets)
        roles[group] = np.lexsort((change, -(lacking & urgent).sum(axis=1)))[0]
        held[roles[group]] += counts[group]
        units_left -= counts[group] > 0
    return _exchange(roles, counts, targets, kept)


def rows_held(counts: Counts, roles: Counts, n_splits: int) -> Counts:
    """(S, C) rows that groups of `counts` (G, C) bring to the splits of their `roles` (G,)."""
    held = np.zeros((n_splits, counts.shape[1]), dtype=np.int64)
    np.add.at(held, roles, counts)
    return held


def allocate(total: int, wanted: Amounts, *, lacking: npt.NDArray[np.bool_]) -> Counts:
    """How many of `total` single rows of one class each split gets: (S,), summing to `total`.

    Splits that are `lacking` the class get one row first. The others follow `wanted` (S,), scaled to what there is, by
    largest remainder (Hamilton's method), so that where `wanted` sums to `total` no split is off by a row or more.
    """
    first = lacking.astype(np.int64) if lacking.sum() <= total else np.zeros(len(wanted), dtype=np.int64)
    left = total - int(first.sum())
    rest = np.clip(wanted - first, 0, None)
    exact = rest * left / max(rest.sum(), 1e-9)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: left - whole.sum()]] += 1
    quotas: Counts = first + whole
    return quotas


def _deviation(held: Counts, targets: Amounts) -> Amounts:
    """The sum over classes of (held - target)^2 / target, Pearson's statistic: (..., C) -> (...).

    Dividing by target^2 would weigh relative deviations alike, and send the largest groups to the smallest split.
    """
    deviation: Amounts = ((held - targets) ** 2 / np.maximum(targets, 1e-9)).sum(axis=-1)
    return deviation


def _misfit(held: Counts, targets: Amounts) -> Amounts:
    lacking = (held <= 0) & (targets > 0)
    misfit: Amounts = _deviation(held, targets) + LACKS_CLASS * lacking.sum(axis=-1)
    return misfit


def _exchange(roles: Counts, counts: Counts, targets: Amounts, kept: Counts) -> Counts:
    """Let two groups change places, or one move, whichever lessens the misfit most, until nothing does."""
    for _ in range(MAX_EXCHANGES):
        group, role, rows = _candidates(roles, counts, len(targets))
        if len(group) > MAX_KINDS:
            break
        held = kept + rows_held(counts, roles, len(targets))
        gained = rows[None, :] - rows[:, None]  # (K, K, C): what the split of i gains when i and j change places
        after = _misfit(held[role][:, None] + gained, targets[role][:, None])
        change = after - _misfit(held, targets)[role][:, None]
        both = np.where(role[:, None] == role, 0.0, change + change.T)
        i, j = np.unravel_index(both.argmin(), both.shape)
        if both[i, j] > -1e-6:
            break
        for mover, place in ((i, j), (j, i)):
            if group[mover] >= 0:
                roles[group[mover]] = role[place]
    return roles


def _candidates(roles: Counts, counts: Counts, n_splits: int) -> tuple[Counts, Counts, Counts]:
    """One group of every kind in every split, and an empty place (-1) in each: index (K,), split (K,), rows (K, C)."""
    kinds, first = np.unique(np.column_stack([roles, counts]), axis=0, return_index=True)
    group = np.concatenate([first, np.full(n_splits, -1)])
    role = np.concatenate([kinds[:, 0], np.arange(n_splits)])
    rows = np.concatenate([kinds[:, 1:], np.zeros((n_splits, counts.shape[1]), dtype=np.int64)])
    return group, role, rows

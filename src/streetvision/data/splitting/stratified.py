"""Assign groups and single rows to splits, in numbers only: without rows, names or randomness.

Shapes: G groups, S splits, C classes. Counts are numbers of rows: (G, C) per group, (S, C) per split.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Amounts = npt.NDArray[np.float64]

MISSING_CLASS_COST = 1e9
"""Cost of a split for each class that it lacks: higher than the cost of any deviation from the proportions."""
MAX_KINDS = 500
"""Groups are exchanged only if they have fewer distinct (split, counts) than this. With more, little can improve."""
MAX_EXCHANGES = 200


def assign_groups(counts: Counts, shares: Amounts, *, singles: Counts, existing: Counts | None = None) -> Counts:
    """Assign every group to a split.

    Greedy: the largest group first, each to the split where it reduces the deviation most; the order breaks ties. If a
    class has no more units left than splits that lack it, its group goes to one of these splits. Then groups are
    exchanged as long as this reduces the cost.

    Args:
        counts: Rows (G, C) of each group.
        shares: Requested share (S,) of each split; they sum to 1.
        singles: Number (C,) of rows that are assigned later; each counts as a unit.
        existing: Rows (S, C) that are in the splits already; default none. The groups compensate for them.

    Returns:
        The split (G,) of each group.
    """
    existing = np.zeros((len(shares), counts.shape[1]), dtype=np.int64) if existing is None else existing
    targets = shares[:, None] * (counts.sum(axis=0) + existing.sum(axis=0))
    roles = np.zeros(len(counts), dtype=np.int64)
    assigned = existing.copy()
    units_left = (counts > 0).sum(axis=0) + singles
    for group in np.argsort(-counts.sum(axis=1), kind="stable"):
        missing = assigned == 0
        urgent = (counts[group] > 0) & (missing.sum(axis=0) >= units_left)
        change = _deviation(assigned + counts[group], targets) - _deviation(assigned, targets)
        # Sorted by the number of urgent classes that the split lacks, then by the change of the deviation.
        roles[group] = np.lexsort((change, -(missing & urgent).sum(axis=1)))[0]
        assigned[roles[group]] += counts[group]
        units_left -= counts[group] > 0
    return _exchange(roles, counts, targets, existing)


def rows_per_split(counts: Counts, roles: Counts, n_splits: int) -> Counts:
    """Rows (S, C) that groups with `counts` (G, C) add to the splits of their `roles` (G,)."""
    rows = np.zeros((n_splits, counts.shape[1]), dtype=np.int64)
    np.add.at(rows, roles, counts)
    return rows


def allocate(total: int, targets: Amounts, *, missing: npt.NDArray[np.bool_]) -> Counts:
    """Allocate `total` single rows of one class to the splits.

    Each split without the class gets one row first. The rest follows `targets`, scaled to the number of rows, by the
    largest remainder (Hamilton's method). So if `targets` sums to `total`, no split deviates by a row or more.

    Args:
        total: Number of rows.
        targets: Requested rows (S,).
        missing: Whether a split (S,) has no row of the class yet.

    Returns:
        Rows (S,) of each split; they sum to `total`.
    """
    first = missing.astype(np.int64) if missing.sum() <= total else np.zeros(len(targets), dtype=np.int64)
    left = total - int(first.sum())
    rest = np.clip(targets - first, 0, None)
    exact = rest * left / max(rest.sum(), 1e-9)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: left - whole.sum()]] += 1
    quotas: Counts = first + whole
    return quotas


def _deviation(rows: Counts, targets: Amounts) -> Amounts:
    """Pearson's statistic (rows - target)^2 / target, summed over classes: (..., C) -> (...).

    Dividing by target^2 would give relative deviations equal weight, and send the largest groups to the smallest split.
    """
    deviation: Amounts = ((rows - targets) ** 2 / np.maximum(targets, 1e-9)).sum(axis=-1)
    return deviation


def _cost(rows: Counts, targets: Amounts) -> Amounts:
    missing = (rows <= 0) & (targets > 0)
    cost: Amounts = _deviation(rows, targets) + MISSING_CLASS_COST * missing.sum(axis=-1)
    return cost


def _exchange(roles: Counts, counts: Counts, targets: Amounts, existing: Counts) -> Counts:
    """Make the move or exchange of groups that reduces the cost most, until none does."""
    for _ in range(MAX_EXCHANGES):
        group, role, rows = _candidates(roles, counts, len(targets))
        if len(group) > MAX_KINDS:
            break
        assigned = existing + rows_per_split(counts, roles, len(targets))
        gain = rows[None, :] - rows[:, None]  # (K, K, C): rows that the split of i gains if i and j are exchanged
        cost_after = _cost(assigned[role][:, None] + gain, targets[role][:, None])
        change = cost_after - _cost(assigned, targets)[role][:, None]
        total_change = np.where(role[:, None] == role, 0.0, change + change.T)
        i, j = np.unravel_index(total_change.argmin(), total_change.shape)
        if total_change[i, j] > -1e-6:
            break
        for moved, destination in ((i, j), (j, i)):
            if group[moved] >= 0:
                roles[group[moved]] = role[destination]
    return roles


def _candidates(roles: Counts, counts: Counts, n_splits: int) -> tuple[Counts, Counts, Counts]:
    """One group of each kind per split, and a placeholder -1 per split, with which an exchange is a move.

    Returns:
        Group (K,), split (K,) and rows (K, C) of each candidate. Groups with equal counts are of the same kind.
    """
    kinds, first = np.unique(np.column_stack([roles, counts]), axis=0, return_index=True)
    group = np.concatenate([first, np.full(n_splits, -1)])
    role = np.concatenate([kinds[:, 0], np.arange(n_splits)])
    rows = np.concatenate([kinds[:, 1:], np.zeros((n_splits, counts.shape[1]), dtype=np.int64)])
    return group, role, rows

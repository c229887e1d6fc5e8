"""Assign the rows of an index to the four splits, stratified by class, with every group in one split.

The same rows and seed give the same splits on every machine and for every order of the rows: pseudo-random orders come
from sha256, not from the random generator of a library.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from streetvision.contracts.errors import DataError, LeakageError
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Partition, Row, Split
from streetvision.data.splitting.stratified import Counts, allocate, assign_groups, rows_per_split

SPLITS = tuple(Split)
N_CLASSES = 2
UNASSIGNED = -1
"""Placeholder in an array of roles."""


def check_fractions(fractions: Mapping[Split, float]) -> Mapping[Split, float]:
    """Return `fractions`.

    Raises:
        ValueError: A split has no fraction above 0, or they do not sum to 1.
    """
    if set(fractions) != set(SPLITS) or not min(fractions.values()) > 0:
        raise ValueError(f"fractions must give each of {', '.join(SPLITS)} a share above 0")
    if not abs(sum(fractions.values()) - 1) <= 1e-9:
        raise ValueError(f"fractions must sum to 1, not {sum(fractions.values()):g}")
    return fractions


Fractions = Annotated[Mapping[Split, float], AfterValidator(check_fractions)]
"""Fraction of the rows of each split, each above 0; they sum to 1."""


def make_partition(
    index: Index,
    *,
    fractions: Fractions,
    seed: int,
    existing_roles: Mapping[str, Split] | None = None,
    near_duplicates: NearDuplicateClusters | None = None,
) -> Partition:
    """Assign a split to every row of `index`.

    All rows of a group get the same split. Rows without a group, or alone in it, are assigned last and compensate for
    the groups. Without groups, every class is within one row of its fraction in every split, unless a split would lack
    it.

    Args:
        index: The rows.
        fractions: Requested fraction of each split.
        seed: Seed of the order of groups and rows.
        existing_roles: sha256 -> split of rows that were assigned before; they and their groups keep their split.
        near_duplicates: Clusters that the groups must contain.

    Raises:
        DataError: A split would lack a class.
        LeakageError: Two groups share an image or a near-duplicate, or a group has existing roles in two splits.
    """
    shares = np.array([fractions[split] for split in SPLITS])
    groups, singles = _units(index.rows, seed)
    roles = _existing_roles(index.rows, groups, existing_roles or {})
    existing = _count_roles(index.rows, roles)
    groups = [members for members in groups if roles[members[0]] == UNASSIGNED]
    singles = [position for position in singles if roles[position] == UNASSIGNED]

    counts = np.array([_count_labels(index.rows, members) for members in groups], dtype=np.int64).reshape(-1, N_CLASSES)
    group_roles = assign_groups(counts, shares, singles=_count_labels(index.rows, singles), existing=existing)
    for members, role in zip(groups, group_roles, strict=True):
        roles[members] = role

    assigned = existing + rows_per_split(counts, group_roles, len(SPLITS))
    for label in range(N_CLASSES):
        of_class = [position for position in singles if index.rows[position].label == label]
        targets = shares * (assigned[:, label].sum() + len(of_class)) - assigned[:, label]
        quotas = allocate(len(of_class), targets, missing=assigned[:, label] == 0)
        roles[of_class] = np.repeat(range(len(SPLITS)), quotas)

    partition = Partition(index, tuple(SPLITS[role] for role in roles), dict(fractions), seed, near_duplicates)
    check_leakage(partition, index.root)
    if problem := missing_class(partition):
        raise DataError(problem, "every split needs a group of each class: add images, or use smaller groups")
    return partition


def split_conflicts(rows: Sequence[Row], existing_roles: Mapping[str, Split]) -> dict[str, str]:
    """Return path -> reason, of new rows whose group has existing roles in two splits."""
    groups, _ = _units(rows, seed=0)
    conflicts = {}
    for members in groups:
        old = {existing_roles[rows[p].sha256] for p in members if rows[p].sha256 in existing_roles}
        if len(old) > 1:
            new = (rows[p].path for p in members if rows[p].sha256 not in existing_roles)
            conflicts.update(dict.fromkeys(new, "is linked to images of two splits"))
    return conflicts


def count_rows(partition: Partition) -> dict[Split, dict[str, int]]:
    """Return the number of rows by split and class name."""
    counts = {split: dict.fromkeys(partition.index.class_names, 0) for split in SPLITS}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        counts[role][partition.index.class_names[row.label]] += 1
    return counts


def missing_class(partition: Partition) -> str | None:
    """Return which class is missing from which splits, and a possible reason; None if none is missing."""
    counts = count_rows(partition)
    for label, name in enumerate(partition.index.class_names):
        missing = [split for split in SPLITS if counts[split][name] == 0]
        if missing:
            rows = [row for row in partition.index.rows if row.label == label]
            n_units = len({_unit(row) for row in rows})
            few = ", fewer groups than splits" if n_units < len(SPLITS) else ""
            found = f"its {len(rows):,} rows make {n_units:,} groups (a row without a group counts as one){few}"
            return f"class {name!r} is missing from {', '.join(missing)}: {found}"
    return None


def check_leakage(partition: Partition, source: object) -> None:
    """Raise LeakageError if rows of one group, with the same bytes, or of one near-duplicate cluster are in two splits.

    Args:
        partition: The rows and their splits.
        source: Name of the file or data set, for the message.
    """
    hint = "train and evaluate on different images: create the splits again in a new run (run_dir=...)"
    role_of: dict[str, Split] = {}
    role_of_path = {}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        role_of_path[row.path] = role
        names = [f"image {row.sha256[:12]}"] + ([f"group {row.group!r}"] if row.group is not None else [])
        for name in names:
            other = role_of.setdefault(name, role)
            if other is not role:
                raise LeakageError(f"{source}: {name} is in {other} and in {role} (row {row.path!r})", hint)
    for paths in partition.near_duplicates.clusters if partition.near_duplicates else ():
        roles = sorted({role_of_path[path] for path in paths})
        if len(roles) > 1:
            raise LeakageError(f"{source}: near-duplicates of {paths[0]!r} are in {' and in '.join(roles)}", hint)


def _unit(row: Row) -> str:
    """Name of what is assigned as a whole: the group, or else the bytes, which do not change if a file is moved."""
    return f"image {row.sha256}" if row.group is None else f"group {row.group}"


def _units(rows: Sequence[Row], seed: int) -> tuple[list[list[int]], list[int]]:
    """Positions of the rows of each group with two or more rows, and of all other rows; both in seeded order."""
    members_of: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        members_of[_unit(row)].append(position)
    names = sorted(members_of, key=lambda name: sha256(f"{seed} {name}".encode()).digest())
    singles = [members_of[name][0] for name in names if len(members_of[name]) == 1]
    return [members_of[name] for name in names if len(members_of[name]) > 1], singles


def _existing_roles(
    rows: Sequence[Row], groups: Iterable[Sequence[int]], existing_roles: Mapping[str, Split]
) -> Counts:
    """(N,) index in SPLITS of each row that has an existing role itself or in its group, else UNASSIGNED."""
    roles = np.array(
        [SPLITS.index(existing_roles[row.sha256]) if row.sha256 in existing_roles else UNASSIGNED for row in rows],
        dtype=np.int64,
    )
    for members in groups:
        existing = set(roles[members].tolist()) - {UNASSIGNED}
        if len(existing) > 1:
            splits = " and ".join(SPLITS[role] for role in sorted(existing))
            raise LeakageError(
                f"group {rows[members[0]].group!r} joins rows that are already in {splits}",
                "start a new run (run_dir=...), or restore the earlier groups of these rows",
            )
        roles[members] = existing.pop() if existing else UNASSIGNED
    return roles


def _count_roles(rows: Sequence[Row], roles: Counts) -> Counts:
    """Rows (S, C) that have a role."""
    counts = np.zeros((len(SPLITS), N_CLASSES), dtype=np.int64)
    assigned = np.flatnonzero(roles != UNASSIGNED)
    np.add.at(counts, (roles[assigned], np.array([row.label for row in rows], dtype=np.int64)[assigned]), 1)
    return counts


def _count_labels(rows: Sequence[Row], positions: Iterable[int]) -> Counts:
    """Rows (C,) of each class at `positions`."""
    return np.bincount([rows[position].label for position in positions], minlength=N_CLASSES)

"""Deals the rows of an index to the four splits.

Stratified by class, and by whole groups. The same rows and seed give the same splits on every machine and in every
order of the rows: what is random comes from sha256, not from a library's generator.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from streetvision.contracts.errors import DataError, LeakageError
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Partition, Row, Split
from streetvision.data.splitting.stratified import Counts, allocate, assign_groups, rows_held

SPLITS = tuple(Split)
CLASSES = 2
UNDEALT = -1
"""In place of a role: the row has none yet."""
NOTHING_KEPT: Mapping[str, Split] = MappingProxyType({})


def check_fractions(fractions: Mapping[Split, float]) -> Mapping[Split, float]:
    """`fractions` as they are; raises ValueError unless each split has a share above 0 and they sum to 1."""
    if set(fractions) != set(SPLITS) or not min(fractions.values()) > 0:
        raise ValueError(f"fractions give each of {', '.join(SPLITS)} a share above 0")
    if not abs(sum(fractions.values()) - 1) <= 1e-9:
        raise ValueError(f"fractions sum to 1, not {sum(fractions.values()):g}")
    return fractions


Fractions = Annotated[Mapping[Split, float], AfterValidator(check_fractions)]
"""Share of the rows for every split, each above 0; they sum to 1."""


def make_partition(
    index: Index,
    *,
    fractions: Mapping[Split, float],
    seed: int,
    kept: Mapping[str, Split] = NOTHING_KEPT,
    near_duplicates: NearDuplicateClusters | None = None,
) -> Partition:
    """A role for every row of `index`.

    A group goes to one split whole. Rows without a group, or alone in theirs, even out what the groups left: without
    groups every class is within one row of its fraction in every split, save where a split would have none of it.
    `kept` (sha256 -> split) holds the roles that rows have already: they and their groups stay there.
    Raises DataError when a split would lack a class, and LeakageError when groups or lookalikes share an image, or a
    group joins rows that are kept in two splits.
    """
    shares = np.array([check_fractions(fractions)[split] for split in SPLITS])
    groups, singles = _units(index.rows, seed)
    roles = _kept_roles(index.rows, groups, kept)
    already = _count_roles(index.rows, roles)
    groups = [members for members in groups if roles[members[0]] == UNDEALT]
    singles = [position for position in singles if roles[position] == UNDEALT]
    counts = np.array([_count_labels(index.rows, members) for members in groups], dtype=np.int64).reshape(-1, CLASSES)
    group_roles = assign_groups(counts, shares, singles=_count_labels(index.rows, singles), kept=already)
    for members, role in zip(groups, group_roles, strict=True):
        roles[members] = role
    held = already + rows_held(counts, group_roles, len(SPLITS))
    for label in range(CLASSES):
        of_class = [position for position in singles if index.rows[position].label == label]
        wanted = shares * (held[:, label].sum() + len(of_class)) - held[:, label]
        roles[of_class] = np.repeat(range(len(SPLITS)), allocate(len(of_class), wanted, lacking=held[:, label] == 0))
    partition = Partition(index, tuple(SPLITS[role] for role in roles), dict(fractions), seed, near_duplicates)
    check_leakage(partition, index.root)
    if problem := missing_class(partition):
        raise DataError(problem, "every split needs a group of each class: add other places, or name smaller groups")
    return partition


def bridges(rows: Sequence[Row], kept: Mapping[str, Split]) -> dict[str, str]:
    """Path -> why it cannot be dealt, of new rows whose group joins rows that are `kept` in two splits."""
    groups, _ = _units(rows, seed=0)
    torn = (members for members in groups if len({kept[rows[p].sha256] for p in members if rows[p].sha256 in kept}) > 1)
    why = "belongs together with images that stand in two splits already"
    return {rows[p].path: why for members in torn for p in members if rows[p].sha256 not in kept}


def count_rows(partition: Partition) -> dict[Split, dict[str, int]]:
    """Split -> class name -> number of rows."""
    counts = {split: dict.fromkeys(partition.index.class_names, 0) for split in SPLITS}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        counts[role][partition.index.class_names[row.label]] += 1
    return counts


def _unit(row: Row) -> str:
    """What a row is dealt with: its group, or else its content, so that its role outlives another name or folder."""
    return f"image {row.sha256}" if row.group is None else f"group {row.group}"


def _units(rows: Sequence[Row], seed: int) -> tuple[list[list[int]], list[int]]:
    """Positions of the rows of every group of two or more, and of the rows that stand alone; both in seeded order."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        grouped[_unit(row)].append(position)
    names = sorted(grouped, key=lambda name: sha256(f"{seed} {name}".encode()).digest())
    singles = [grouped[name][0] for name in names if len(grouped[name]) == 1]
    return [grouped[name] for name in names if len(grouped[name]) > 1], singles


def _kept_roles(rows: Sequence[Row], groups: Iterable[Sequence[int]], kept: Mapping[str, Split]) -> Counts:
    """(N,) the position in SPLITS of every row whose role is settled, by itself or by its group; else UNDEALT."""
    roles = np.array(
        [SPLITS.index(kept[row.sha256]) if row.sha256 in kept else UNDEALT for row in rows], dtype=np.int64
    )
    for members in groups:
        settled = set(roles[members].tolist()) - {UNDEALT}
        if len(settled) > 1:
            between = " and ".join(SPLITS[role] for role in sorted(settled))
            raise LeakageError(
                f"group {rows[members[0]].group!r} joins rows that an earlier deal put into {between}",
                "deal all rows anew, in a new run (run_dir=...), or give the rows the groups that they had",
            )
        roles[members] = settled.pop() if settled else UNDEALT
    return roles


def _count_roles(rows: Sequence[Row], roles: Counts) -> Counts:
    """(S, C) rows of each class that have a role."""
    counts = np.zeros((len(SPLITS), CLASSES), dtype=np.int64)
    dealt = np.flatnonzero(roles != UNDEALT)
    np.add.at(counts, (roles[dealt], np.array([row.label for row in rows], dtype=np.int64)[dealt]), 1)
    return counts


def _count_labels(rows: Sequence[Row], positions: Iterable[int]) -> Counts:
    """(C,) rows of each class among `positions`."""
    return np.bincount([rows[position].label for position in positions], minlength=CLASSES)


def missing_class(partition: Partition) -> str | None:
    """Which class is missing from which split, and why that may be; None when none is."""
    counts = count_rows(partition)
    for label, name in enumerate(partition.index.class_names):
        missing = [split for split in SPLITS if counts[split][name] == 0]
        if missing:
            rows = [row for row in partition.index.rows if row.label == label]
            units = len({_unit(row) for row in rows})
            few = ", fewer groups than splits" if units < len(SPLITS) else ""
            what = f"class {name!r} is missing from {', '.join(missing)}"
            return f"{what}: its {len(rows):,} rows make {units:,} groups (a row without one counts as one){few}"
    return None


def check_leakage(partition: Partition, source: object) -> None:
    """Raise LeakageError when rows of one group, of the same bytes or of near-duplicates stand in two splits."""
    role_of: dict[str, Split] = {}
    by_path = {}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        by_path[row.path] = role
        names = [f"image {row.sha256[:12]}"] + ([f"group {row.group!r}"] if row.group is not None else [])
        for name in names:
            if role_of.setdefault(name, role) is not role:
                raise _leakage(f"{source}: {name} stands in {role_of[name]} and in {role} (row {row.path!r})")
    for paths in partition.near_duplicates.clusters if partition.near_duplicates else ():
        roles = sorted({by_path[path] for path in paths})
        if len(roles) > 1:
            raise _leakage(f"{source}: near-duplicates of {paths[0]!r} stand in {' and in '.join(roles)}")


def _leakage(what: str) -> LeakageError:
    hint = "what is fitted on one split must not be judged on the same data: deal the rows anew, in a new run"
    return LeakageError(what, hint)

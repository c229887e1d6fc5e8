"""Assign the rows of an index to splits or folds, stratified by class, with every group in one of them.

The same rows and seed give the same result on every machine and for every order of the rows: pseudo-random orders come
from sha256, not from the random generator of a library.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from streetvision.contracts.errors import DataError, LeakageError
from streetvision.contracts.split_contracts import (
    NO_FOLD,
    RANDOM_QUEUE,
    Index,
    NearDuplicateClusters,
    Partition,
    Row,
    Split,
)
from streetvision.data.splitting.stratified import Amounts, Counts, allocate, assign_groups, rows_per_split

SPLITS = tuple(Split)
N_CLASSES = 2
UNASSIGNED = -1
"""Placeholder in an array of places."""
FEWEST_FOLDS = 3
"""In each fold of cross_fit, one fold is VAL_CALIB, one is VAL_SELECT, and the others are TRAIN."""
MAX_FOLDS = 1000


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
    keep_test: bool = False,
) -> Partition:
    """Assign a split to every row of `index`.

    All rows of a group get the same split. Rows without a group, or alone in it, are assigned last and compensate for
    the groups. Without groups, every class is within one row of its fraction in every split, unless a split would lack
    it. Rows that may be in TRAIN only, and their groups, are in TRAIN. Rows that were drawn at random for a label are
    assigned without regard to it.

    Args:
        index: The rows.
        fractions: Requested fraction of each split.
        seed: Seed of the order of groups and rows.
        existing_roles: sha256 -> split of rows that were assigned before; they and their groups keep their split.
        near_duplicates: Clusters that the groups must contain.
        keep_test: VAL_TEST has its existing rows and no others, of one class or both; the fractions of the other splits
            hold for the rest.

    Raises:
        DataError: A split would lack a class.
        LeakageError: Two groups share an image or a near-duplicate, or a group has existing roles in two splits.
    """
    existing_roles = dict.fromkeys(train_only(index.rows), Split.TRAIN) | dict(existing_roles or {})
    existing = {sha256: SPLITS.index(role) for sha256, role in existing_roles.items()}
    shares = np.array([fractions[split] for split in SPLITS])
    closed = SPLITS.index(Split.VAL_TEST) if keep_test else None
    existing |= _places_of_random_rows(index.rows, shares, seed=seed, existing=existing, closed=closed)
    places = _assign(index.rows, shares, names=SPLITS, seed=seed, existing=existing, closed=closed)
    roles = tuple(SPLITS[place] for place in places)
    return _checked(Partition(index, roles, dict(fractions), seed, near_duplicates), any_test=keep_test)


def make_folds(
    index: Index,
    *,
    fractions: Fractions,
    folds: int,
    seed: int,
    existing_folds: Mapping[str, int] | None = None,
    near_duplicates: NearDuplicateClusters | None = None,
    keep_test: bool = False,
) -> Partition:
    """Assign VAL_TEST and the folds of cross_fit to the rows of `index`, as `make_partition` assigns splits.

    Rows that may be in TRAIN only, and their groups, are in folds; `Partition.in_fold` evaluates no such row.

    Args:
        index: The rows.
        fractions: The fraction of VAL_TEST is used.
        folds: Number of folds, at least FEWEST_FOLDS. There are fewer if a class would be missing from one of them.
        seed: Seed of the order of groups and rows.
        existing_folds: sha256 -> fold of rows that were assigned before, or NO_FOLD for VAL_TEST; they and their groups
            keep it. If a class would be missing from a fold, only VAL_TEST is kept.
        near_duplicates: Clusters that the groups must contain.
        keep_test: Previous VAL_TEST; see `make_partition`.

    Raises:
        DataError: VAL_TEST, or one of FEWEST_FOLDS folds, would lack a class.
        LeakageError: Two groups share an image or a near-duplicate, or a group has existing rows in two folds.
    """
    known, test = existing_folds or {}, fractions[Split.VAL_TEST]
    fewest = max([FEWEST_FOLDS, *(fold + 1 for fold in known.values())])
    evaluated = [row for row in index.rows if not row.train_only]
    units = [count_units(evaluated, label) for label in range(N_CLASSES)]
    chosen = {unit_name(row) for row in index.rows if row.train_only}
    for count in range(max(fewest, min(folds, min(units) - 1)), fewest - 1, -1):
        names = [*(f"fold {fold}" for fold in range(count)), str(Split.VAL_TEST)]
        shares = np.array([(1 - test) / count] * count + [test])
        existing = {sha256: count if fold == NO_FOLD else fold for sha256, fold in known.items()}
        # Rows that a model selected for labeling do not affect where the others are; their groups are not in VAL_TEST.
        others = [row for row in index.rows if unit_name(row) not in chosen]
        of_others = _assign(
            others, shares, names=names, seed=seed, existing=existing, closed=count if keep_test else None
        )
        existing |= {row.sha256: place for row, place in zip(others, of_others, strict=True)}
        places = _assign(index.rows, shares, names=names, seed=seed, existing=existing, closed=count)
        roles = tuple(Split.VAL_TEST if place == count else Split.TRAIN for place in places)
        of_row = tuple(NO_FOLD if place == count else place for place in places)
        partition = Partition(index, roles, dict(fractions), seed, near_duplicates, of_row)
        if missing_class(partition, any_test=keep_test) is None:
            break
    else:
        of_test = {sha256: fold for sha256, fold in known.items() if fold == NO_FOLD}
        classes_of_test = {row.label for row in index.rows if row.sha256 in of_test}
        if of_test != known and (keep_test or len(classes_of_test) == N_CLASSES):
            # The earlier folds do not fit these rows: a class has fewer of them now.
            return make_folds(
                index,
                fractions=fractions,
                folds=folds,
                seed=seed,
                existing_folds=of_test,
                near_duplicates=near_duplicates,
                keep_test=keep_test,
            )
    return _checked(partition, any_test=keep_test)


def _checked(partition: Partition, *, any_test: bool) -> Partition:
    check_leakage(partition, partition.index.root)
    if problem := missing_class(partition, any_test=any_test):
        hint = "every split needs images of each class: add images"
        if any(row.train_only for row in partition.index.rows):
            hint = (
                "every split needs images of each class that were drawn at random: label some with --queue random "
                "(--import only if they were drawn at random), or add images to data.root"
            )
        elif any(row.group is not None for row in partition.index.rows):
            hint += ", or use smaller groups"
        raise DataError(problem, hint)
    return partition


def assign_folds(rows: Sequence[Row], n_folds: int, *, seed: int) -> list[int]:
    """Return the fold (N,) of each row: whole groups, stratified by class, with about as many rows in each fold."""
    names = [f"fold {fold}" for fold in range(n_folds)]
    return _assign(rows, np.full(n_folds, 1 / n_folds), names=names, seed=seed, existing={})


def _assign(
    rows: Sequence[Row],
    shares: Amounts,
    *,
    names: Sequence[str],
    seed: int,
    existing: Mapping[str, int],
    closed: int | None = None,
) -> list[int]:
    """The place of each row (N,): a position in `shares` (S,) and in `names`; no row is added to place `closed`."""
    if closed is not None:
        open_places = [place for place in range(len(shares)) if place != closed]
        others = [position for position, row in enumerate(rows) if existing.get(row.sha256) != closed]
        inner = _assign(
            [rows[position] for position in others],
            shares[open_places] / shares[open_places].sum(),
            names=[names[place] for place in open_places],
            seed=seed,
            existing={sha256: open_places.index(place) for sha256, place in existing.items() if place != closed},
        )
        places = [closed] * len(rows)
        for position, place in zip(others, inner, strict=True):
            places[position] = open_places[place]
        return places
    groups, singles = _units(rows, seed)
    assigned_to = _existing_places(rows, groups, existing, names)
    taken = _count_places(rows, assigned_to, len(shares))
    groups = [members for members in groups if assigned_to[members[0]] == UNASSIGNED]
    singles = [position for position in singles if assigned_to[position] == UNASSIGNED]

    counts = np.array([_count_labels(rows, members) for members in groups], dtype=np.int64).reshape(-1, N_CLASSES)
    group_places = assign_groups(counts, shares, singles=_count_labels(rows, singles), existing=taken)
    for members, place in zip(groups, group_places, strict=True):
        assigned_to[members] = place

    assigned = taken + rows_per_split(counts, group_places, len(shares))
    for label in range(N_CLASSES):
        of_class = [position for position in singles if rows[position].label == label]
        targets = shares * (assigned[:, label].sum() + len(of_class)) - assigned[:, label]
        quotas = allocate(len(of_class), targets, missing=assigned[:, label] == 0)
        assigned_to[of_class] = np.repeat(range(len(shares)), quotas)
    return list(map(int, assigned_to))


def train_only(rows: Iterable[Row]) -> list[str]:
    """Return the sha256 of the rows that may be in TRAIN only."""
    return [row.sha256 for row in rows if row.train_only]


def _places_of_random_rows(
    rows: Sequence[Row], shares: Amounts, *, seed: int, existing: Mapping[str, int], closed: int | None
) -> dict[str, int]:
    """sha256 -> place, of new rows that `streetvision label` drew at random, and of their groups.

    The labels have no effect: rows that a model selected are in TRAIN, so a stratified assignment would
    give the other splits what TRAIN lacks, and they would not have the classes in the proportion of the pool.
    """
    if not any(row.queue == RANDOM_QUEUE for row in rows):
        return {}
    groups, singles = _units(rows, seed)
    places: dict[str, int] = {}
    targets, assigned = shares * len(rows), np.zeros(len(shares))
    drawn: list[list[int]] = []
    for members in [*groups, *([position] for position in singles)]:
        known = next((existing[rows[p].sha256] for p in members if rows[p].sha256 in existing), None)
        if known is not None:
            assigned[known] += len(members)
        elif any(rows[p].queue == RANDOM_QUEUE for p in members):
            drawn.append(members)
    for members in drawn:
        missing = (targets - assigned) / targets
        if closed is not None:
            missing[closed] = -np.inf
        place = int(missing.argmax())
        assigned[place] += len(members)
        places |= {rows[p].sha256: place for p in members}
    return places


def split_conflicts(rows: Sequence[Row], existing: Mapping[str, object]) -> dict[str, str]:
    """Return path -> reason, of new rows whose group has existing rows in two splits or folds.

    New rows that may be in TRAIN only are also returned if their group has existing rows in an evaluation split.
    """
    groups, _ = _units(rows, seed=0)
    name_of_evaluation: dict[object, str] = {split: split.value for split in SPLITS if split is not Split.TRAIN}
    name_of_evaluation[NO_FOLD] = Split.VAL_TEST.value
    conflicts = {}
    for members in groups:
        others = {existing[rows[p].sha256] for p in members if rows[p].sha256 in existing}
        if evaluated := sorted({name_of_evaluation[place] for place in others if place in name_of_evaluation}):
            reason = f"was chosen for its label, and is related to images of {' and '.join(evaluated)}"
            chosen = (rows[p] for p in members if rows[p].train_only and rows[p].sha256 not in existing)
            conflicts.update({row.path: reason for row in chosen})
        if len(others) > 1:
            new = (rows[p].path for p in members if rows[p].sha256 not in existing)
            conflicts.update(dict.fromkeys(new, "is linked to images of two splits"))
    return conflicts


def count_rows(partition: Partition) -> dict[Split, dict[str, int]]:
    """Return the number of rows by split and class name."""
    counts = {split: dict.fromkeys(partition.index.class_names, 0) for split in SPLITS}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        counts[role][partition.index.class_names[row.label]] += 1
    return counts


def missing_class(partition: Partition, *, any_test: bool = False) -> str | None:
    """Return which class is missing from which splits or folds, and a possible reason; None if none is missing.

    With `any_test`, VAL_TEST may have one class, because its rows were given: a source, for example.
    """
    counts: dict[str, dict[str, int]] = {split.value: count for split, count in count_rows(partition).items()}
    if partition.folds is not None:
        test = counts[Split.VAL_TEST]
        counts = {f"fold {fold}": dict.fromkeys(partition.index.class_names, 0) for fold in range(FEWEST_FOLDS)}
        counts |= {f"fold {fold}": count for fold, count in enumerate(count_fold_rows(partition))}
        counts[Split.VAL_TEST.value] = test
    if any_test:
        del counts[Split.VAL_TEST.value]
    for label, name in enumerate(partition.index.class_names):
        missing = [place for place, count in counts.items() if count[name] == 0]
        if missing:
            rows = [row for row in partition.index.rows if row.label == label]
            n_units = count_units(rows)
            few = f", and at least {len(counts)} are needed" if n_units < len(counts) else ""
            found = f"its {len(rows):,} rows make {n_units:,} groups (a row without a group counts as one){few}"
            if chosen := sum(row.train_only for row in rows):
                found += f"; {chosen:,} of them were not drawn at random and may be in TRAIN only"
            return f"class {name!r} is missing from {', '.join(missing)}: {found}"
    return None


def count_units(rows: Iterable[Row], label: int | None = None) -> int:
    """Return the number of groups, and rows without a group, that have a row of class `label`; None: of any class."""
    return len({unit_name(row) for row in rows if label is None or row.label == label})


def count_fold_rows(partition: Partition) -> list[dict[str, int]]:
    """Return the number of rows by class name that are evaluated in each fold of cross_fit."""
    counts = [dict.fromkeys(partition.index.class_names, 0) for _ in range(partition.n_folds)]
    for row, fold in zip(partition.index.rows, partition.folds or (), strict=partition.folds is not None):
        if fold != NO_FOLD and not row.train_only:
            counts[fold][partition.index.class_names[row.label]] += 1
    return counts


def check_leakage(partition: Partition, source: object) -> None:
    """Raise LeakageError if rows of one group, with the same bytes, or of one near-duplicate cluster are in two splits.

    The folds of cross_fit count as splits. A row that may be in TRAIN only must have the role TRAIN.

    Args:
        partition: The rows and their splits.
        source: Name of the file or data set, for the message.
    """
    hint = "train and evaluate on different images: create the splits again in a new run (run_dir=...)"
    role_of: dict[str, str] = {}
    role_of_path = {}
    places = [
        role.value if fold == NO_FOLD else f"fold {fold}"
        for role, fold in zip(partition.roles, partition.folds or [NO_FOLD] * len(partition.roles), strict=True)
    ]
    for row, split, role in zip(partition.index.rows, partition.roles, places, strict=True):
        role_of_path[row.path] = role
        if row.train_only and split is not Split.TRAIN:
            raise LeakageError(
                f"{source}: row {row.path!r} is in {role}, but it may be in train only: the queue {row.queue!r} "
                "chose it for its label",
                hint,
            )
        names = [f"image {row.sha256[:12]}"] + ([f"group {row.group!r}"] if row.group is not None else [])
        for name in names:
            other = role_of.setdefault(name, role)
            if other != role:
                raise LeakageError(f"{source}: {name} is in {other} and in {role} (row {row.path!r})", hint)
    for paths in partition.near_duplicates.clusters if partition.near_duplicates else ():
        roles = sorted({role_of_path[path] for path in paths})
        if len(roles) > 1:
            raise LeakageError(f"{source}: near-duplicates of {paths[0]!r} are in {' and in '.join(roles)}", hint)


def unit_name(row: Row) -> str:
    """Return the name of what is assigned as a whole: the group, or else the bytes, which stay if a file is moved."""
    return f"image {row.sha256}" if row.group is None else f"group {row.group}"


def _units(rows: Sequence[Row], seed: int) -> tuple[list[list[int]], list[int]]:
    """Positions of the rows of each group with two or more rows, and of all other rows; both in seeded order."""
    members_of: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        members_of[unit_name(row)].append(position)
    names = sorted(members_of, key=lambda name: sha256(f"{seed} {name}".encode()).digest())
    singles = [members_of[name][0] for name in names if len(members_of[name]) == 1]
    return [members_of[name] for name in names if len(members_of[name]) > 1], singles


def _existing_places(
    rows: Sequence[Row], groups: Iterable[Sequence[int]], existing: Mapping[str, int], names: Sequence[str]
) -> Counts:
    """(N,) place of each row that has an existing one itself or in its group, else UNASSIGNED."""
    places = np.array([existing.get(row.sha256, UNASSIGNED) for row in rows], dtype=np.int64)
    for members in groups:
        found = set(places[members].tolist()) - {UNASSIGNED}
        if len(found) > 1:
            splits = " and ".join(names[place] for place in sorted(found))
            raise LeakageError(
                f"group {rows[members[0]].group!r} joins rows that are already in {splits}",
                "start a new run (run_dir=...), or restore the earlier groups of these rows",
            )
        places[members] = found.pop() if found else UNASSIGNED
    return places


def _count_places(rows: Sequence[Row], places: Counts, n_places: int) -> Counts:
    """Rows (S, C) that have a place."""
    counts = np.zeros((n_places, N_CLASSES), dtype=np.int64)
    assigned = np.flatnonzero(places != UNASSIGNED)
    np.add.at(counts, (places[assigned], np.array([row.label for row in rows], dtype=np.int64)[assigned]), 1)
    return counts


def _count_labels(rows: Sequence[Row], positions: Iterable[int]) -> Counts:
    """Rows (C,) of each class at `positions`."""
    return np.bincount([rows[position].label for position in positions], minlength=N_CLASSES)

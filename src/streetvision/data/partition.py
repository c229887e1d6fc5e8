"""Deals the rows of an index to the four splits, and reads and writes the result as splits.json.

Stratified by class, and by whole groups. The same rows and seed give the same splits on every machine and in every
order of the rows: what is random comes from sha256, not from a library's generator.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError, DataError, LeakageError
from streetvision.contracts.split_contracts import Index, Partition, Row, Split
from streetvision.data.dealing import Counts, apportion, deal_groups, rows_held

SPLITS = tuple(Split)
CLASSES = 2


def check_fractions(fractions: Mapping[Split, float]) -> Mapping[Split, float]:
    """`fractions` as they are; raises ValueError unless each split has a share above 0 and they sum to 1."""
    if set(fractions) != set(SPLITS) or not min(fractions.values()) > 0:
        raise ValueError(f"fractions give each of {', '.join(SPLITS)} a share above 0")
    if not abs(sum(fractions.values()) - 1) <= 1e-9:
        raise ValueError(f"fractions sum to 1, not {sum(fractions.values()):g}")
    return fractions


Fractions = Annotated[Mapping[Split, float], AfterValidator(check_fractions)]
"""Share of the rows for every split, each above 0; they sum to 1."""


class _RowRecord(BaseModel):
    """A row of splits.json: the fields of Row, and its split."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(min_length=1)]
    label: Literal[0, 1]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: Annotated[int, Field(strict=True, ge=1)]
    height: Annotated[int, Field(strict=True, ge=1)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    group: str | None
    source: str | None
    columns: dict[str, str]
    split: Split


class _SplitsRecord(BaseModel):
    """splits.json as a whole. What follows from the rows is there for the reader, and checked against them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[2]
    root: str
    class_names: tuple[str, str]
    seed: Annotated[int, Field(strict=True)]
    fractions: Fractions
    fractions_got: dict[Split, float]
    counts: dict[Split, dict[str, int]]
    fingerprint: str
    rows: list[_RowRecord]


def make_partition(index: Index, *, fractions: Mapping[Split, float], seed: int) -> Partition:
    """A role for every row of `index`.

    A group goes to one split whole. Rows without a group, or alone in theirs, even out what the groups left: without
    groups every class is within one row of its fraction in every split, save where a split would have none of it.
    Raises DataError when a split would lack a class, and LeakageError when groups share an image.
    """
    shares = np.array([check_fractions(fractions)[split] for split in SPLITS])
    groups, singles = _units(index.rows, seed)
    counts = np.array([_count_labels(index.rows, members) for members in groups], dtype=np.int64).reshape(-1, CLASSES)
    group_roles = deal_groups(counts, shares, singles=_count_labels(index.rows, singles))
    roles = np.zeros(len(index.rows), dtype=np.int64)
    for members, role in zip(groups, group_roles, strict=True):
        roles[members] = role
    held = rows_held(counts, group_roles, len(SPLITS))
    for label in range(CLASSES):
        of_class = [position for position in singles if index.rows[position].label == label]
        wanted = shares * (held[:, label].sum() + len(of_class)) - held[:, label]
        roles[of_class] = np.repeat(range(len(SPLITS)), apportion(len(of_class), wanted, lacking=held[:, label] == 0))
    partition = Partition(index, tuple(SPLITS[role] for role in roles), dict(fractions), seed)
    _check_leakage(partition, index.root)
    if problem := _missing_class(partition):
        raise DataError(problem, "every split needs a group of each class: add other places, or name smaller groups")
    return partition


def count_rows(partition: Partition) -> dict[Split, dict[str, int]]:
    """Split -> class name -> number of rows."""
    counts = {split: dict.fromkeys(partition.index.class_names, 0) for split in SPLITS}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        counts[role][partition.index.class_names[row.label]] += 1
    return counts


def partition_to_json(partition: Partition) -> dict[str, object]:
    """What splits.json holds: what was asked for, what came of it, and the rows with their splits."""
    rows = zip(partition.index.rows, partition.roles, strict=True)
    return {
        "schema_version": 2,
        "root": str(partition.index.root),
        "class_names": list(partition.index.class_names),
        "seed": partition.seed,
        "fractions": {split.value: partition.fractions[split] for split in SPLITS},
        **_derived(partition),
        "rows": [vars(row) | {"split": role.value} for row, role in rows],
    }


def partition_from_json(value: object, source: Path) -> Partition:
    """The partition that `value`, the content of the file `source`, holds.

    Raises ArtifactError, which names file and field, for a value that is malformed or contradicts itself, and
    LeakageError where a group or the same image stands in two splits.
    """
    remedy = "the file was edited or damaged: restore it, or start a new run"
    try:
        record = _SplitsRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ArtifactError(f"{source}: {field}: {first['msg']}", remedy) from error
    rows = tuple(Row(**{name: value for name, value in entry if name != "split"}) for entry in record.rows)
    index = Index(Path(record.root), record.class_names, rows)
    partition = Partition(index, tuple(entry.split for entry in record.rows), record.fractions, record.seed)
    _check_leakage(partition, source)
    if problem := _repeated_path(rows) or _missing_class(partition) or _contradiction(partition, record):
        raise ArtifactError(f"{source}: {problem}", remedy)
    return partition


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


def _count_labels(rows: Sequence[Row], positions: Iterable[int]) -> Counts:
    """(C,) rows of each class among `positions`."""
    return np.bincount([rows[position].label for position in positions], minlength=CLASSES)


def _missing_class(partition: Partition) -> str | None:
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


def _check_leakage(partition: Partition, source: object) -> None:
    """Raise LeakageError when rows of one group, or of the same bytes, stand in two splits."""
    role_of: dict[str, Split] = {}
    for row, role in zip(partition.index.rows, partition.roles, strict=True):
        names = [f"image {row.sha256[:12]}"] + ([f"group {row.group!r}"] if row.group is not None else [])
        for name in names:
            if role_of.setdefault(name, role) is not role:
                raise LeakageError(
                    f"{source}: {name} stands in {role_of[name]} and in {role} (row {row.path!r})",
                    "what is fitted on one split must not be judged on the same data: deal the rows anew, in a new run",
                )


def _repeated_path(rows: Sequence[Row]) -> str | None:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row.path in seen:
            return f"rows.{number}.path: {row.path!r} stands there twice"
        seen.add(row.path)
    return None


def _derived(partition: Partition) -> dict[str, object]:
    """The fields of splits.json that follow from the rows and their roles."""
    counts = count_rows(partition)
    return {
        "fingerprint": partition.index.fingerprint,
        "counts": {split.value: counts[split] for split in SPLITS},
        "fractions_got": {split.value: sum(counts[split].values()) / len(partition.roles) for split in SPLITS},
    }


def _contradiction(partition: Partition, record: _SplitsRecord) -> str | None:
    """The first field that does not follow from the rows, though it should; None when all do."""
    written = record.model_dump(mode="json", exclude={"rows"})
    for field, value in _derived(partition).items():
        if written[field] != value:
            return f"{field}: {written[field]} does not fit the rows, which make it {value}"
    return None

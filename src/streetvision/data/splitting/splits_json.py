"""splits.json: the partition as a file, and everything that a damaged or edited one gives away."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Partition, Row, Split
from streetvision.data.splitting.partition import SPLITS, Fractions, check_leakage, count_rows, missing_class


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


class _NearDuplicatesRecord(BaseModel):
    """What splits.json says of near-duplicates, with the proof that none of their pairs crosses two splits."""

    model_config = ConfigDict(extra="forbid")

    radius: Annotated[int, Field(strict=True, ge=0, le=64)]
    correlation: Annotated[float, Field(ge=-1, le=1)]
    pairs: Annotated[int, Field(strict=True, ge=0)]
    clusters: list[list[str]]
    crossing: Literal[0]


class _SplitsRecord(BaseModel):
    """splits.json as a whole. What follows from the rows is there for the reader, and checked against them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[3]
    root: str
    class_names: tuple[str, str]
    seed: Annotated[int, Field(strict=True)]
    fractions: Fractions
    fractions_got: dict[Split, float]
    counts: dict[Split, dict[str, int]]
    fingerprint: str
    dealt_sha256: str
    near_duplicates: _NearDuplicatesRecord | None
    rows: list[_RowRecord]


def partition_to_json(partition: Partition) -> dict[str, object]:
    """What splits.json holds: what was asked for, what came of it, and the rows with their splits."""
    rows = zip(partition.index.rows, partition.roles, strict=True)
    return {
        "schema_version": 3,
        "root": str(partition.index.root),
        "class_names": list(partition.index.class_names),
        "seed": partition.seed,
        "fractions": {split.value: partition.fractions[split] for split in SPLITS},
        **_derived(partition),
        "near_duplicates": None if (found := partition.near_duplicates) is None else vars(found) | {"crossing": 0},
        "rows": [vars(row) | {"split": role.value} for row, role in rows],
    }


def partition_from_json(value: object, source: Path) -> Partition:
    """The partition that `value`, the content of the file `source`, holds.

    Raises ArtifactError, which names file and field, for a value that is malformed or contradicts itself, and
    LeakageError where a group or the same image stands in two splits.
    """
    hint = "the file was edited or damaged: restore it, or start a new run"
    try:
        record = _SplitsRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ArtifactError(f"{source}: {field}: {first['msg']}", hint) from error
    rows = tuple(Row(**{name: value for name, value in entry if name != "split"}) for entry in record.rows)
    index = Index(Path(record.root), record.class_names, rows)
    roles = tuple(entry.split for entry in record.rows)
    partition = Partition(index, roles, record.fractions, record.seed, _lookalikes(record.near_duplicates))
    if problem := _repeated_path(rows) or _unknown_path(partition):
        raise ArtifactError(f"{source}: {problem}", hint)
    check_leakage(partition, source)
    if problem := missing_class(partition) or _contradiction(partition, record):
        raise ArtifactError(f"{source}: {problem}", hint)
    return partition


def _lookalikes(record: _NearDuplicatesRecord | None) -> NearDuplicateClusters | None:
    if record is None:
        return None
    clusters = tuple(tuple(paths) for paths in record.clusters)
    return NearDuplicateClusters(record.radius, record.correlation, record.pairs, clusters)


def _repeated_path(rows: Sequence[Row]) -> str | None:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row.path in seen:
            return f"rows.{number}.path: {row.path!r} stands there twice"
        seen.add(row.path)
    return None


def _unknown_path(partition: Partition) -> str | None:
    known = {row.path for row in partition.index.rows}
    named = (
        path for paths in (partition.near_duplicates.clusters if partition.near_duplicates else ()) for path in paths
    )
    unknown = next((path for path in named if path not in known), None)
    return None if unknown is None else f"near_duplicates.clusters: {unknown!r} is no row"


def _derived(partition: Partition) -> dict[str, object]:
    """The fields of splits.json that follow from the rows and their roles."""
    counts = count_rows(partition)
    return {
        "fingerprint": partition.index.fingerprint,
        "counts": {split.value: counts[split] for split in SPLITS},
        "fractions_got": {split.value: sum(counts[split].values()) / len(partition.roles) for split in SPLITS},
        "dealt_sha256": _dealt_sha256(partition),
    }


def _dealt_sha256(partition: Partition) -> str:
    """Digest of who stands where, so that a later deal never keeps roles that were edited by hand."""
    lines = sorted(f"{row.sha256} {role}" for row, role in zip(partition.index.rows, partition.roles, strict=True))
    return sha256("\n".join(lines).encode()).hexdigest()


def _contradiction(partition: Partition, record: _SplitsRecord) -> str | None:
    """The first field that does not follow from the rows, though it should; None when all do."""
    written = record.model_dump(mode="json", exclude={"rows", "near_duplicates"})
    for field, value in _derived(partition).items():
        if written[field] != value:
            return f"{field}: {written[field]} does not fit the rows, which make it {value}"
    return None

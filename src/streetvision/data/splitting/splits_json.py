"""Read and write splits.json: the partition as a file, with all checks for damaged or edited content."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import (
    NO_FOLD,
    Index,
    NearDuplicateClusters,
    Partition,
    Protocol,
    Row,
    Split,
)
from streetvision.data.splitting.partition import MAX_FOLDS, SPLITS, Fractions, check_leakage, count_rows, missing_class

SCHEMA_VERSION = 4


class _RowRecord(BaseModel):
    """The fields of Row, its split, and under cross_fit its fold."""

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
    queue: str | None = None
    split: Split
    fold: Annotated[int, Field(strict=True, ge=0, le=MAX_FOLDS - 1)] | None = None


class _NearDuplicatesRecord(BaseModel):
    """The fields of NearDuplicateClusters, and the number of pairs across two splits, which is 0."""

    model_config = ConfigDict(extra="forbid")

    radius: Annotated[int, Field(strict=True, ge=0, le=64)]
    correlation: Annotated[float, Field(ge=-1, le=1)]
    pairs: Annotated[int, Field(strict=True, ge=0)]
    clusters: list[list[str]]
    copies: list[list[str]] = []
    cross_split_pairs: Literal[0]


class _SplitsRecord(BaseModel):
    """Content of splits.json. The derived fields help a reader, and are checked against the rows."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[4]
    protocol: Protocol = Protocol.SPLIT
    root: str
    class_names: tuple[str, str]
    seed: Annotated[int, Field(strict=True)]
    fractions: Fractions
    actual_fractions: dict[Split, float]
    counts: dict[Split, dict[str, int]]
    fingerprint: str
    assignment_sha256: str
    near_duplicates: _NearDuplicatesRecord | None
    rows: Annotated[list[_RowRecord], Field(min_length=1)]


def partition_to_json(partition: Partition) -> dict[str, object]:
    """Return the content of splits.json."""
    folds = partition.folds or [NO_FOLD] * len(partition.roles)
    rows = zip(partition.index.rows, partition.roles, folds, strict=True)
    near_duplicates = partition.near_duplicates
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": partition.protocol.value,
        "root": str(partition.index.root),
        "class_names": list(partition.index.class_names),
        "seed": partition.seed,
        "fractions": {split.value: partition.fractions[split] for split in SPLITS},
        **_derived_fields(partition),
        "near_duplicates": None if near_duplicates is None else vars(near_duplicates) | {"cross_split_pairs": 0},
        "rows": [
            vars(row) | {"split": role.value} | ({} if fold == NO_FOLD else {"fold": fold}) for row, role, fold in rows
        ],
    }


def partition_from_json(value: object, source: Path) -> Partition:
    """Validate the content of splits.json, and return its partition.

    Args:
        value: Parsed content of the file.
        source: The file, for messages.

    Raises:
        ArtifactError: The content is malformed or contradicts itself; the message names file and field.
        LeakageError: A group, or the same image, is in two splits.
    """
    hint = "the file was edited or damaged: restore it, or start a new run"
    try:
        record = _SplitsRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the content"
        raise ArtifactError(f"{source}: {field}: {first['msg']}", hint) from error

    paths: set[str] = set()
    for number, entry in enumerate(record.rows):
        if entry.path in paths:
            raise ArtifactError(f"{source}: rows.{number}.path: {entry.path!r} occurs twice", hint)
        paths.add(entry.path)
    near_duplicates = None
    if record.near_duplicates is not None:
        found = record.near_duplicates
        clusters, copies = (tuple(map(tuple, kind)) for kind in (found.clusters, found.copies))
        unknown = next((path for cluster in (*clusters, *copies) for path in cluster if path not in paths), None)
        if unknown is not None:
            raise ArtifactError(f"{source}: near_duplicates: {unknown!r} is not a row", hint)
        near_duplicates = NearDuplicateClusters(found.radius, found.correlation, found.pairs, clusters, copies)

    rows = tuple(
        Row(**{name: value for name, value in entry if name not in ("split", "fold")}) for entry in record.rows
    )
    index = Index(Path(record.root), record.class_names, rows)
    roles = tuple(entry.split for entry in record.rows)
    folds = None
    if record.protocol is Protocol.CROSS_FIT:
        folds = tuple(NO_FOLD if entry.fold is None else entry.fold for entry in record.rows)
    for number, entry in enumerate(record.rows):
        has_fold = record.protocol is Protocol.CROSS_FIT and entry.split is Split.TRAIN
        if (entry.fold is not None) != has_fold or (folds and entry.split not in (Split.TRAIN, Split.VAL_TEST)):
            raise ArtifactError(f"{source}: rows.{number}: split and fold do not fit the protocol", hint)
    partition = Partition(index, roles, record.fractions, record.seed, near_duplicates, folds)
    check_leakage(partition, source)
    if problem := missing_class(partition, any_test=True):
        raise ArtifactError(f"{source}: {problem}", hint)
    written = record.model_dump(mode="json", exclude={"rows", "near_duplicates"})
    for field, expected in _derived_fields(partition).items():
        if written[field] != expected:
            raise ArtifactError(
                f"{source}: {field}: {written[field]} does not match the rows, which give {expected}", hint
            )
    return partition


def _derived_fields(partition: Partition) -> dict[str, object]:
    """The fields of splits.json that are computed from the rows and their splits."""
    counts = count_rows(partition)
    return {
        "fingerprint": partition.index.fingerprint,
        "counts": {split.value: counts[split] for split in SPLITS},
        "actual_fractions": {split.value: sum(counts[split].values()) / len(partition.roles) for split in SPLITS},
        # Counts do not change if two rows of a class are swapped by hand; this digest does.
        "assignment_sha256": partition.split_sha256,
    }

"""labels.parquet: one row per decision of a person. Rows are only ever added; an undo is a row of its own.

Each decision replaces the file atomically, so a process that is killed leaves all decisions that it has confirmed. The
id of a decision is chosen by the client that sends it, so a decision that is sent twice is stored once.
"""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.split_contracts import RANDOM_QUEUE
from streetvision.data.records import fold_name
from streetvision.data.sources.parquet_index import DAMAGED_PARQUET, open_parquet
from streetvision.io.atomic import open_atomic

SECOND_OPINION = "second_opinion"
IMPORTED = "imported"
QUEUES = ("diverse", "uncertain", "abstained", "suspicious", RANDOM_QUEUE, SECOND_OPINION, IMPORTED)
"""Why a person was asked for a label."""
MAX_EVENTS = 2_000_000
CLASS_NAMES_KEY = b"streetvision.class_names"
SCHEMA = pa.schema(
    [
        pa.field("event", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("labeler", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("queue", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("model", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("undoes", pa.string()),
    ]
)

EventId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Labeler = Annotated[str, Field(min_length=1, max_length=100)]


class LabelEvent(BaseModel):
    """One decision of a person about one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: EventId
    """Id of the decision."""
    action: Literal["label", "skip", "undo"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the bytes of the image."""
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Absolute path of the image at that time."""
    label: Literal[0, 1] | None = None
    """The class, if the action is label."""
    labeler: Labeler
    """Who decided."""
    time: AwareDatetime
    queue: str
    """One of QUEUES: how the image was chosen."""
    group: Annotated[str, Field(max_length=4096)] | None = None
    """Group of the image: images of one group share a split."""
    model: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the model that chose the image; None: no model."""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None
    """Time from the display of the image to the decision."""
    undoes: EventId | None = None
    """The decision that is withdrawn, if the action is undo."""

    @model_validator(mode="after")
    def _check_action(self) -> Self:
        if (self.label is not None) != (self.action == "label") or (self.undoes is not None) != (self.action == "undo"):
            raise ValueError("a label has a class, an undo names a decision, and nothing else does")
        if self.queue not in QUEUES:
            raise ValueError(f"queue {self.queue!r} is not one of {', '.join(QUEUES)}")
        return self


class LabelStore:
    """A labels.parquet that is open for reading and adding. One process at a time may add: hold a lock.

    Args:
        path: The file; it need not exist.
        class_names: Names of class 0 and class 1.

    Raises:
        ArtifactError: The file is damaged, or its labels are of other classes.
    """

    def __init__(self, path: Path, class_names: tuple[str, str]) -> None:
        self.path = path
        metadata = {CLASS_NAMES_KEY: json.dumps(class_names).encode()}
        self._schema, self._lock = SCHEMA.with_metadata(metadata), threading.Lock()
        self._events = list(read_events(path, class_names)) if path.exists() else []
        self._ids = {event.event for event in self._events}
        self._table = _table(self._events, self._schema)

    @property
    def events(self) -> tuple[LabelEvent, ...]:
        """All decisions, the oldest first."""
        return tuple(self._events)

    def knows(self, event: str) -> bool:
        """Whether a decision with this id is stored."""
        return event in self._ids

    def append(self, events: Iterable[LabelEvent]) -> int:
        """Write decisions to disk and return how many are new: those with a known id are stored already.

        Raises:
            ArtifactError: The file cannot be written, or a decision withdraws one that does not exist.
        """
        with self._lock:
            new = list({event.event: event for event in events if event.event not in self._ids}.values())
            known = self._ids | {event.event for event in new}
            if unknown := next((event for event in new if event.undoes not in {None, *known}), None):
                raise ArtifactError(f"decision {unknown.undoes} to undo is not in {str(self.path)!r}")
            if not new:
                return 0
            table = pa.concat_tables([self._table, _table(new, self._schema)]).combine_chunks()
            with open_atomic(self.path) as handle:
                pq.write_table(table, handle)
            self._table = table
            self._events += new
            self._ids = known
            return len(new)


def _table(events: Iterable[LabelEvent], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([event.model_dump() for event in events], schema=schema)


def read_events(path: Path, class_names: tuple[str, str]) -> tuple[LabelEvent, ...]:
    """Return the decisions in a labels.parquet, the oldest first.

    Raises:
        ConfigError: There is no file.
        ArtifactError: The file is damaged, or its labels are of other classes.
    """
    if not path.exists():
        raise ConfigError(f"there are no labels at {str(path)!r}", "set data.labels=...")
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            if not schema.equals(SCHEMA) or CLASS_NAMES_KEY not in (schema.metadata or {}):
                raise ArtifactError(
                    f"{str(path)!r} is not a file of labels: its columns are {', '.join(schema.names[:20])}",
                    "set data.labels to the labels.parquet that `streetvision label` wrote",
                )
            if file.metadata.num_rows > MAX_EVENTS:
                raise ArtifactError(f"{str(path)!r} has {file.metadata.num_rows:,} rows; the limit is {MAX_EVENTS:,}")
            names = json.loads(schema.metadata[CLASS_NAMES_KEY])
            rows = file.read().to_pylist()
        if [fold_name(str(name)) for name in names] != [fold_name(name) for name in class_names]:
            raise ArtifactError(
                f"{str(path)!r} has labels of the classes {', '.join(map(str, names))}, not {', '.join(class_names)}",
                "set data.class_names to the classes of the labels",
            )
        events = tuple(LabelEvent.model_validate(row) for row in rows)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "a row"
        raise ArtifactError(f"{str(path)!r}: {field}: {first['msg']}", "restore the file from a copy") from error
    except (*DAMAGED_PARQUET, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{str(path)!r} cannot be read as Parquet: {reason}", "restore it from a copy") from error
    if len({event.event for event in events}) < len(events):
        raise ArtifactError(f"{str(path)!r}: a decision occurs twice", "restore the file from a copy")
    return events


def label_event(**fields: object) -> LabelEvent:
    """Return a validated decision; raises ArtifactError if a field is invalid."""
    try:
        return LabelEvent.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{'.'.join(map(str, first['loc'])) or 'the decision'}: {first['msg']}") from error

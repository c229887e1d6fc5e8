"""The index that an import makes, index.parquet: one row an image, written in parts so that a killed import goes on."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streetvision.contracts.errors import DataError
from streetvision.data.records import Listed, Listing, check_classes, count_classes, naming_hint
from streetvision.data.sources.csv_json import Columns
from streetvision.io.atomic import open_atomic

INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("source", pa.string()),
        pa.field("columns", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
"""`columns` holds whatever else is known: taken, latitude, longitude, and every further column of the source."""

Record = Mapping[str, Any]


class IndexParts:
    """Parts of an index that grows: each is whole or not there, and together they become the index."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, folder / "parts"

    def done(self) -> int:
        """Entries of the source that the parts have dealt with, rows or not."""
        return max((int(path.stem.partition("-")[2]) for path in self._paths()), default=0)

    def append(self, records: Sequence[Record], *, until: int, left_out: Mapping[str, int]) -> None:
        """Write the rows of the next entries of the source, which end before entry `until`; the others are counted."""
        told = {reason: str(count) for reason, count in left_out.items()}
        table = pa.Table.from_pylist([dict(record) for record in records], schema=SCHEMA.with_metadata(told))
        with open_atomic(self.parts / f"part-{until:012d}.parquet") as handle:
            pq.write_table(table, handle)

    def finish(self) -> Counter[str]:
        """Join the parts to the index, one at a time in memory, and remove them.

        Returns how many `rows` there are, and how many entries were left out for each reason.
        """
        counts: Counter[str] = Counter()
        with open_atomic(self.folder / INDEX) as handle, pq.ParquetWriter(handle, SCHEMA) as writer:
            for path in sorted(self._paths()):
                table = pq.read_table(path)
                counts["rows"] += len(table)
                told = table.schema.metadata or {}
                counts.update({reason.decode(): int(count) for reason, count in told.items()})
                writer.write_table(table.cast(SCHEMA))
        shutil.rmtree(self.parts)
        return counts

    def _paths(self) -> list[Path]:
        return list(self.parts.glob(f"part-{'[0-9]' * 12}.parquet"))


def list_parquet(path: Path, *, class_names: tuple[str, str], columns: Columns) -> Listing:
    """The images of an index that `streetvision data import` made; raises DataError for any other Parquet file."""
    images = tuple(_images(path, columns))
    found = count_classes(images, class_names)
    check_classes(path, found, class_names=class_names, hint=f"import both classes; {naming_hint(class_names)}")
    return Listing(path.parent, images)


def _images(path: Path, columns: Columns) -> Iterator[Listed]:
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise DataError(f"{str(path)!r} is not an index: its columns are {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches():
                yield from (_image(row, path, columns) for row in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _image(row: dict[str, Any], path: Path, columns: Columns) -> Listed:
    if row["label"] not in (0, 1) or not row["path"]:
        raise DataError(f"{str(path)!r}: {row['path']!r} has label {row['label']!r}, neither 0 nor 1")
    further = dict(row["columns"])
    chosen = {"group": row["group"], "source": row["source"]}
    for usual, asked in (("group", columns.group), ("source", columns.source)):
        if asked is not None:
            if asked not in further:
                raise DataError(f"{str(path)!r} has no column {asked!r}, which data.{usual}_column asks for")
            chosen[usual] = further.pop(asked) or None
    return Listed(row["path"], row["label"], **chosen, columns=further)

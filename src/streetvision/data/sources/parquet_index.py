"""index.parquet, which `streetvision data import` writes: one row per image. It is written in parts to be resumable."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streetvision.contracts.errors import DataError
from streetvision.data.file_search import existing_name
from streetvision.data.records import (
    ImageListing,
    ImageRecord,
    RejectedFile,
    check_both_classes,
    class_names_hint,
    count_classes,
    parse_group,
    repeated_images,
)
from streetvision.data.sources.csv_json import ColumnNames
from streetvision.io.atomic import open_atomic

INDEX = "index.parquet"
LABELS = "labels.parquet"
"""The file of `streetvision label`."""
DAMAGED = "damaged"
"""Key in the metadata of a part."""
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
"""`columns` has all other values as text: taken, latitude, longitude, and the other columns of the source."""


DAMAGED_PARQUET = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""Errors of PyArrow on damaged files; it raises ValueError for text that is not UTF-8."""


def open_parquet(path: Path, *, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a Parquet file; raises one of DAMAGED_PARQUET if it is none, or if its numbers of rows are impossible."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=buffer_size)
    metadata = file.metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    # A row takes more than a byte of the file, except in a file that is made to be listed for ever.
    if not 0 <= metadata.num_rows == sum(rows) <= path.stat().st_size or min(rows, default=0) < 0:
        file.close()
        raise ValueError(f"it declares an impossible number of rows: {metadata.num_rows:,}")
    return file


class IndexParts:
    """The parts of an index that is being written. Each part is complete or absent; `finish` joins them.

    Args:
        folder: Folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, folder / "parts"

    def done(self) -> int:
        """Return how many entries of the source were processed, whether they became rows or not."""
        # The name of a part has the number of entries processed up to its end.
        return max((int(path.stem.partition("-")[2]) for path in self._paths()), default=0)

    def append(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        until: int,
        skipped: Mapping[str, int],
        damaged: Sequence[RejectedFile] = (),
    ) -> None:
        """Write the next part.

        Args:
            rows: Rows of the part.
            until: Number of entries of the source processed after this part.
            skipped: Reason -> number of entries of this part that did not become rows.
            damaged: Archives that ended in this part and cannot be read to their end.
        """
        metadata = {reason: str(count) for reason, count in skipped.items()}
        metadata[DAMAGED] = json.dumps([[file.path, file.reason] for file in damaged])
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA.with_metadata(metadata))
        with open_atomic(self.parts / f"part-{until:012d}.parquet") as handle:
            pq.write_table(table, handle)

    def finish(self) -> tuple[Counter[str], list[RejectedFile]]:
        """Join the parts into the index, with one part in memory at a time, and remove them.

        Returns:
            The number of `rows` and for each reason the number of skipped entries; and the damaged archives.
        """
        counts: Counter[str] = Counter()
        damaged: list[RejectedFile] = []
        with open_atomic(self.folder / INDEX) as handle, pq.ParquetWriter(handle, SCHEMA) as writer:
            for path in sorted(self._paths()):
                table = pq.read_table(path)
                counts["rows"] += len(table)
                metadata = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
                damaged += [RejectedFile(*file) for file in json.loads(metadata.pop(DAMAGED, b"[]"))]
                counts.update({reason: int(count) for reason, count in metadata.items()})
                writer.write_table(table.cast(SCHEMA))
        # The last part first: after an interruption, the import resumes from the parts that are left.
        for path in sorted(self._paths(), reverse=True):
            path.unlink()
        if self.parts.is_dir():  # a source without entries has no parts
            shutil.rmtree(self.parts)
        return counts, damaged

    def _paths(self) -> list[Path]:
        return list(self.parts.glob(f"part-{'[0-9]' * 12}.parquet"))


def list_parquet(
    path: Path, *, class_names: tuple[str, str], columns: ColumnNames, one_class: bool = False
) -> ImageListing:
    """List the images of an index.parquet.

    Raises:
        DataError: The file was not written by `streetvision data import`, lacks a given column, or has no images of a
            class.
    """
    images: list[ImageRecord] = []
    try:
        with open_parquet(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise DataError(f"{str(path)!r} is not an index: its columns are {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches():
                images += [_image_record(row, path) for row in batch.to_pylist()]
    except DAMAGED_PARQUET as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {reason}") from error
    if requested := [field for field, name in vars(columns).items() if name is not None]:
        # A row has no entry for an empty value: a column exists if any row has it.
        present = dict.fromkeys(("group", "source"))
        present |= dict.fromkeys(name for image in images for name in image.columns)
        try:
            resolved = columns.resolve(present, repr(str(path)))
        except DataError as error:
            raise DataError(error.message, f"{error.hint}; a column that was set for the import is applied") from error
        images = [_with_metadata(image, {field: resolved[field] for field in requested}) for image in images]
    counts = count_classes(images, class_names)
    hint = f"import images of both classes; {class_names_hint(class_names)}"
    check_both_classes(path, counts, class_names=class_names, hint=hint, one_class=one_class)
    return ImageListing(path.parent, tuple(images), repeated_images(images), unnamed_labels=("0", "1"))


def _image_record(row: dict[str, Any], path: Path) -> ImageRecord:
    if row["label"] not in (0, 1) or not row["path"]:
        raise DataError(f"{str(path)!r}: {row['path']!r} has label {row['label']!r}, which is not 0 or 1")
    group, source = parse_group(row["group"]), parse_group(row["source"])
    name = existing_name(path.parent, row["path"])
    return ImageRecord(name, row["label"], group, source, dict(row["columns"]))


def _with_metadata(image: ImageRecord, chosen: Mapping[str, str]) -> ImageRecord:
    """The image with its group or source from the chosen columns, or from the group or source of the import."""
    columns = {"group": image.group, "source": image.source, **image.columns}
    metadata: dict[str, Any] = {field: parse_group(columns.get(column)) for field, column in chosen.items()}
    others = {name: text for name, text in image.columns.items() if name not in chosen.values()}
    return replace(image, **metadata, columns=others)

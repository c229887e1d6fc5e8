"""Images wherever they lie, one after the other: files, folders, tars and Parquet, listed without being read.

A listing is a stream: memory holds one entry, whatever a source holds. Nothing is unpacked to disk; an image in a tar
is the bytes from an offset, an image in a Parquet file is a row.
"""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.decode import UndecodableImage, read_image_bytes
from streetvision.data.records import IMAGE_SUFFIXES
from streetvision.data.sources.parquet_index import SCHEMA
from streetvision.data.sources.webdataset import DAMAGED_TAR

IMAGE = "image"
"""Column of a Parquet file with the images: their bytes, or a struct with a field `bytes` as Hugging Face writes it."""
ROWS_AT_ONCE = 16
READ_AHEAD = 2**20
"""Bytes of a Parquet column that are read at once."""

Content = bytes | UndecodableImage
"""Of one image; an error is handed on as a value, since those behind it can still be read."""


@dataclass(frozen=True)
class Item:
    """One image of a source."""

    name: str
    """What its answer calls it: its path, TAR/MEMBER or PARQUET#ROW."""
    kind: str
    """Name in CONTENTS."""
    file: str
    """Absolute path of the file that it is, or lies in."""
    size: int
    """Bytes of the image, for Parquet those of the file: what changes when the source does."""
    at: int = 0
    """In a tar the byte where it begins, in Parquet its row."""
    reason: str = ""
    """Of something that cannot be read: completes the sentence "this file ..."."""


def list_sources(sources: Sequence[Path]) -> Iterator[Item]:
    """Every image of the sources, each once; what cannot be listed is an item with the reason.

    Folders are searched to any depth for images, tars and Parquet files with images in them, in the order in which the
    file system names them; hidden names are passed over, and links to folders not followed. Raises DataError for a
    source that is not there, lies within another or holds no image.
    """
    whole = [source.expanduser().absolute() for source in sources]
    _check_apart(whole)
    for source in whole:
        found = False
        for item in _list_source(source):
            found = True
            yield item
        if not found:
            raise DataError(f"{str(source)!r} holds no images", "give images, or folders, tars or Parquet of them")


def read_items(items: Iterable[Item], *, limits: DecodeLimits = DEFAULT_LIMITS) -> Iterator[tuple[Item, Content]]:
    """Each item with its bytes; those of one Parquet file are quickest where they follow each other by row."""
    for (kind, file), group in groupby(items, key=lambda item: (item.kind, item.file)):
        together, read = list(group), 0
        try:
            for item, content in zip(together, CONTENTS[kind](Path(file), together, limits), strict=True):
                read += 1
                yield item, content
        except UndecodableImage as error:
            yield from ((item, error) for item in together[read:])


def _check_apart(sources: Sequence[Path]) -> None:
    resolved = [source.resolve() for source in sources]
    for number, (source, path) in enumerate(zip(sources, resolved, strict=True)):
        if not path.exists():
            raise DataError(f"there is no {str(source)!r}", "give images, or folders, tars or Parquet of them")
        others = [other for place, other in enumerate(resolved) if place != number]
        if inside := next((other for other in others if path.is_relative_to(other)), None):
            raise DataError(
                f"{str(source)!r} is named twice: it lies in {str(inside)!r}", "name every image once, by one source"
            )


def _list_source(source: Path) -> Iterator[Item]:
    if source.is_dir():
        return _list_folder(source)
    if source.suffix.lower() == ".parquet":
        return _list_named_parquet(source)
    return LISTED.get(source.suffix.lower(), _list_file)(source)


def _list_folder(folder: Path) -> Iterator[Item]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield from _list_entry(entry)
    except OSError as error:
        yield _unreadable(folder, error.strerror or str(error))


def _list_entry(entry: "os.DirEntry[str]") -> Iterator[Item]:
    path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
    try:
        if entry.is_dir(follow_symlinks=False):
            yield from _list_folder(path)
        elif (suffix in LISTED or suffix in IMAGE_SUFFIXES) and entry.is_file():
            yield from LISTED.get(suffix, _list_file)(path)
    except OSError as error:
        yield _unreadable(path, error.strerror or str(error))


def _list_file(path: Path) -> Iterator[Item]:
    yield Item(str(path), "file", str(path), path.stat().st_size)


def _list_tar(path: Path) -> Iterator[Item]:
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep every one
                name = PurePosixPath(member.name)
                if member.isreg() and name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith("."):
                    yield Item(f"{path}/{member.name}", "tar", str(path), member.size, member.offset_data)
    except DAMAGED_TAR as error:
        yield _unreadable(path, f"as an uncompressed tar: {error}")


def _list_parquet(path: Path) -> Iterator[Item]:
    """The rows of a Parquet file that holds images; nothing of any other."""
    try:
        with pq.ParquetFile(path) as file:
            if _image_column(file.schema_arrow) is not None:
                size = path.stat().st_size
                for row in range(file.metadata.num_rows):
                    yield Item(f"{path}#{row}", "parquet", str(path), size, row)
    except (pa.ArrowException, OSError) as error:
        yield _unreadable(path, f"as Parquet: {_first_line(error)}")


def _list_named_parquet(path: Path) -> Iterator[Item]:
    """As `_list_parquet`; also the files that an index names, which in a folder are found without it."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if schema.equals(SCHEMA):
                for batch in file.iter_batches(columns=["path"]):
                    for name in batch.column(0).to_pylist():
                        yield from _list_named(path.parent / name)
                return
    except (pa.ArrowException, OSError) as error:
        yield _unreadable(path, f"as Parquet: {_first_line(error)}")
        return
    if _image_column(schema) is None:
        raise DataError(
            f"{str(path)!r} has no column {IMAGE!r} of bytes (found: {', '.join(schema.names)})", "rename the column"
        )
    yield from _list_parquet(path)


def _list_named(path: Path) -> Iterator[Item]:
    try:
        yield from _list_file(path)
    except (OSError, ValueError):
        yield Item(str(path), "unreadable", str(path), 0, reason="is not there")


LISTED: Mapping[str, Callable[[Path], Iterator[Item]]] = {".tar": _list_tar, ".parquet": _list_parquet}
"""Suffix of a file that holds images -> what lists them."""


def _unreadable(path: Path, why: str) -> Item:
    return Item(str(path), "unreadable", str(path), 0, reason=f"cannot be read {why}")


def _image_column(schema: pa.Schema) -> str | None:
    """The column, or the field of its struct, that has the bytes of images."""
    if IMAGE not in schema.names:
        return None
    kind = schema.field(IMAGE).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{IMAGE}.bytes"
    return IMAGE if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _read_file(path: Path, _: Sequence[Item], limits: DecodeLimits) -> Iterator[Content]:
    yield read_image_bytes(path, limits=limits)


def _read_tar(path: Path, items: Sequence[Item], limits: DecodeLimits) -> Iterator[Content]:
    try:
        with path.open("rb") as archive:
            for item in items:
                archive.seek(item.at)
                yield _within(item.size, limits) or _whole(archive.read(item.size), item.size)
    except OSError as error:
        raise UndecodableImage(f"cannot be read: {error.strerror}") from error


def _read_parquet(path: Path, items: Sequence[Item], limits: DecodeLimits) -> Iterator[Content]:
    """Rows of one file, each a later one; only the row groups between the first and the last are opened."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_AHEAD) as file:
            column = _image_column(file.schema_arrow)
            groups, row = _row_groups(file.metadata, items[0].at, items[-1].at)
            batches = file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[column])
            values = (value for batch in batches for value in batch.column(0))
            for item in items:
                value = next(islice(values, item.at - row, None)).as_py()
                row = item.at + 1
                data = value["bytes"] if isinstance(value, dict) else value
                yield UndecodableImage("has no bytes") if data is None else _within(len(data), limits) or data
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise UndecodableImage(f"cannot be read as Parquet: {_first_line(error)}") from error


def _row_groups(metadata: pq.FileMetaData, first: int, last: int) -> tuple[list[int], int]:
    """The row groups with the rows from `first` to `last`, and the row that they begin with."""
    groups: list[int] = []
    begin = row = 0
    for number in range(metadata.num_row_groups):
        end = row + metadata.row_group(number).num_rows
        if end > first and row <= last:
            begin = begin if groups else row
            groups.append(number)
        row = end
    return groups, begin


def _read_nothing(_: Path, items: Sequence[Item], __: DecodeLimits) -> Iterator[Content]:
    return (UndecodableImage(item.reason) for item in items)


def _within(size: int, limits: DecodeLimits) -> UndecodableImage | None:
    if size <= limits.max_megabytes * 1e6:
        return None
    return UndecodableImage(f"is {size / 1e6:,.4g} MB; the limit is {limits.max_megabytes:g}")


def _whole(data: bytes, size: int) -> Content:
    return data if len(data) == size else UndecodableImage("is truncated")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


CONTENTS: Mapping[str, Callable[[Path, Sequence[Item], DecodeLimits], Iterator[Content]]] = {
    "file": _read_file,
    "tar": _read_tar,
    "parquet": _read_parquet,
    "unreadable": _read_nothing,
}
"""Kind of an item -> what reads the items of that kind in one file."""

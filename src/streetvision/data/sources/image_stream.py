"""List and read images in files, folders, tars and Parquet files, without unpacking them to disk.

Images are listed as a stream of small references, so memory does not grow with the source. A reference has the position
of the image: a byte offset in a tar, a row in a Parquet file.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.file_search import ARCHIVES, LeftOut, is_ignored, reason_against_suffix, search_folder
from streetvision.data.image_file import UndecodableImage, read_image_bytes
from streetvision.data.records import IMAGE_SUFFIXES, RejectedFile
from streetvision.data.sources.tar_reader import open_tar
from streetvision.data.sources.webdataset import TEXT_PARTS

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMN = "image"
"""Column of a Parquet file with images: bytes, or a struct with a field `bytes` as Hugging Face writes it."""
PARQUET_BATCH_ROWS = 16
PARQUET_BUFFER_BYTES = 2**20
SOURCE_HINT = "give images, or folders, tars or Parquet files with images"

Content = bytes | UndecodableImage
"""Bytes of an image, or the reason why there are none. An error is a value, so that the next images are still read."""


@dataclass(frozen=True)
class ImageRef:
    """Reference to one image of a source."""

    name: str
    """Name of the image in predictions: its path, TAR/MEMBER or PARQUET#ROW."""
    kind: str
    """Key of READERS."""
    file: str
    """Absolute path of the file that is or contains the image."""
    size: int
    """Size in bytes of the image, or of the whole file for Parquet; it changes if the source changes."""
    offset: int = 0
    """First byte of the image in a tar, or its row in a Parquet file."""
    reason: str = ""
    """Reason if it cannot be read; completes the sentence "this file ..."."""


def list_image_refs(sources: Sequence[Path], *, left_out: LeftOut | None = None) -> Iterator[ImageRef]:
    """Yield the images of the sources. A file or folder that cannot be listed yields a reference with the reason.

    Each image is listed once, except that an index yields a path as often as it has it.

    Folders are searched by the rules and in the order of `search_folder`, for images, tars and Parquet files with
    images.

    Args:
        sources: Image files, folders, tars and Parquet files.
        left_out: Counts the files in folders and tars that are neither.

    Raises:
        DataError: A source does not exist, is a compressed archive, is inside another source, or has no images.
    """
    absolute = [source.absolute() for source in sources]
    resolved = [source.resolve() for source in absolute]
    for number, (source, path) in enumerate(zip(absolute, resolved, strict=True)):
        try:
            _file_size(path)
        except UndecodableImage as error:
            raise DataError(f"{str(source)!r} {error.reason}", SOURCE_HINT) from error
        refuse_compressed(source)
        others = resolved[:number] + resolved[number + 1 :]
        if parent := next((other for other in others if path.is_relative_to(other)), None):
            raise DataError(
                f"{str(source)!r} is given twice: it is inside {str(parent)!r}", "remove one of the two sources"
            )
    for source in absolute:
        empty = True
        for ref in _list_source(source, left_out or LeftOut()):
            empty = False
            yield ref
        if empty:
            raise DataError(f"{str(source)!r} has no images", SOURCE_HINT)


def refuse_compressed(source: Path) -> None:
    """Raise DataError for a file with the suffix of a compressed archive."""
    if source.suffix.lower() in ARCHIVES - LISTERS.keys() and not os.path.isdir(source):  # noqa: PTH112 (Path.is_dir may raise)
        raise DataError(
            f"{str(source)!r} is a compressed archive; tars are read if they are not compressed",
            "unpack it, and give the folder",
        )


def read_image_refs(
    refs: Iterable[ImageRef], *, limits: DecodeLimits = DEFAULT_LIMITS
) -> Iterator[tuple[ImageRef, Content]]:
    """Yield each reference with its bytes. References into one Parquet file must be sorted by row."""
    for (kind, file), group in groupby(refs, key=lambda ref: (ref.kind, ref.file)):
        same_file, n_read = list(group), 0
        try:
            for ref, content in zip(same_file, READERS[kind](Path(file), same_file, limits), strict=True):
                n_read += 1
                yield ref, content
        except UndecodableImage as error:  # of the whole file
            yield from ((ref, error) for ref in same_file[n_read:])


def _list_source(source: Path, left_out: LeftOut) -> Iterator[ImageRef]:
    if source.is_dir():
        return _list_folder(source, left_out)
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        return _list_given_parquet(source)
    return LISTERS.get(suffix, _list_file)(source, left_out)


def _list_folder(folder: Path, left_out: LeftOut) -> Iterator[ImageRef]:
    for found in search_folder(folder, IMAGE_SUFFIXES | LISTERS.keys()):
        path = Path(found.path)
        if found.unreadable:
            yield ImageRef(found.path, "unreadable", found.path, 0, reason=found.reason)
        elif found.reason:
            left_out.add(RejectedFile(found.path, found.reason))
        else:
            refs = LISTERS.get(path.suffix.lower(), _list_file)(path, left_out)
            first = next(refs, None)
            if first is None:
                left_out.add(RejectedFile(found.path, "has no images"))
            else:
                yield first
                yield from refs


def _list_file(path: Path, _: LeftOut | None = None) -> Iterator[ImageRef]:
    try:
        yield ImageRef(str(path), "file", str(path), _file_size(path))
    except UndecodableImage as error:
        yield ImageRef(str(path), "unreadable", str(path), 0, reason=error.reason)


def _file_size(path: Path) -> int:
    """Size in bytes; raises UndecodableImage if there is no such file or it cannot be read."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the name
        raise UndecodableImage("does not exist") from error
    except OSError as error:
        raise UndecodableImage(f"cannot be read: {error.strerror or error}") from error


def _list_tar(path: Path, left_out: LeftOut) -> Iterator[ImageRef]:
    """The images of a tar; links to images and damaged members get a reason, and so does the tar as a whole.

    Other members are left out; labels and metadata of WebDataset are not counted.
    """
    try:
        with open_tar(path, compressed=False) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                hidden = any(is_ignored(part) for part in name.parts if part not in {".", ".."})
                suffix = name.suffix.lower()
                if hidden or suffix in TEXT_PARTS:
                    continue
                full_name = f"{path}/{member.name}"
                if suffix not in IMAGE_SUFFIXES:
                    left_out.add(RejectedFile(full_name, reason_against_suffix(suffix)))
                else:
                    kind = "unreadable" if member.reason else "tar"
                    yield ImageRef(full_name, kind, str(path), member.size, member.offset, member.reason)
            if archive.fault:
                yield _unreadable(path, f"as an uncompressed tar: it {archive.fault}")
    except (OSError, ValueError) as error:
        yield _unreadable(path, f"as an uncompressed tar: {error}")


def _list_parquet(path: Path, _: LeftOut | None = None) -> Iterator[ImageRef]:
    """The rows of a Parquet file with images; nothing of another Parquet file."""
    # Imported here, as below, because PyArrow comes with the extra `train`.
    from streetvision.data.sources.parquet_index import DAMAGED_PARQUET, open_parquet

    try:
        with open_parquet(path) as file:
            if _image_column(file.schema_arrow) is not None:
                size = path.stat().st_size
                for row in range(file.metadata.num_rows):
                    yield ImageRef(f"{path}#{row}", "parquet", str(path), size, row)
    except DAMAGED_PARQUET as error:
        yield _unreadable(path, f"as Parquet: {_first_line(error)}")


def _list_given_parquet(path: Path) -> Iterator[ImageRef]:
    """As `_list_parquet`, for a file that is itself a source: an index.parquet yields the files that it lists.

    In a folder an index is not used, because the search finds the files.
    """
    from streetvision.data.sources.parquet_index import DAMAGED_PARQUET, SCHEMA, open_parquet

    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            if schema.equals(SCHEMA):
                for batch in file.iter_batches(columns=["path"]):
                    for name in batch.column(0).to_pylist():
                        yield from _list_file(path.parent / name)
                return
    except DAMAGED_PARQUET as error:
        yield _unreadable(path, f"as Parquet: {_first_line(error)}")
        return
    if _image_column(schema) is None:
        raise DataError(
            f"{str(path)!r} has no column {IMAGE_COLUMN!r} of bytes (found: {', '.join(schema.names)})",
            "rename the column",
        )
    yield from _list_parquet(path)


LISTERS: Mapping[str, Callable[[Path, LeftOut], Iterator[ImageRef]]] = {".tar": _list_tar, ".parquet": _list_parquet}
"""Suffix of a file that contains images -> function that lists them."""


def _unreadable(path: Path, detail: str) -> ImageRef:
    return ImageRef(str(path), "unreadable", str(path), 0, reason=f"cannot be read {detail}")


def _image_column(schema: "pa.Schema") -> str | None:
    """The column, or the field of a struct, with the bytes of images; None if there is none."""
    if IMAGE_COLUMN not in schema.names:
        return None
    column_type = schema.field(IMAGE_COLUMN).type
    from pyarrow import types

    if types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
        return f"{IMAGE_COLUMN}.bytes"
    return IMAGE_COLUMN if types.is_binary(column_type) or types.is_large_binary(column_type) else None


def _read_file(path: Path, refs: Sequence[ImageRef], limits: DecodeLimits) -> Iterator[Content]:
    return (read_image_bytes(path, limits=limits) for _ in refs)


def _read_tar(path: Path, refs: Sequence[ImageRef], limits: DecodeLimits) -> Iterator[Content]:
    try:
        with path.open("rb") as archive:
            for ref in refs:
                if too_large := _size_error(ref.size, limits):
                    yield too_large
                    continue
                archive.seek(ref.offset)
                data = archive.read(ref.size)
                # The tar may have changed after it was listed.
                yield data if len(data) == ref.size else UndecodableImage("is truncated")
    except OSError as error:
        raise UndecodableImage(f"cannot be read: {error.strerror}") from error


def _read_parquet(path: Path, refs: Sequence[ImageRef], limits: DecodeLimits) -> Iterator[Content]:
    """The given rows of one file, in ascending order; reads only the row groups that contain them."""
    from streetvision.data.sources.parquet_index import DAMAGED_PARQUET, open_parquet

    try:
        with open_parquet(path, buffer_size=PARQUET_BUFFER_BYTES) as file:
            column = _image_column(file.schema_arrow)
            groups, next_row = _row_groups(file.metadata, refs[0].offset, refs[-1].offset)
            batches = file.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups, columns=[column])
            values = (value for batch in batches for value in batch.column(0))
            for ref in refs:
                value = next(islice(values, ref.offset - next_row, None)).as_py()
                next_row = ref.offset + 1
                data = value["bytes"] if isinstance(value, dict) else value
                yield UndecodableImage("has no bytes") if data is None else _size_error(len(data), limits) or data
    except (*DAMAGED_PARQUET, StopIteration, AttributeError) as error:  # AttributeError: the column is gone
        raise UndecodableImage(f"cannot be read as Parquet: {_first_line(error)}") from error


def _row_groups(metadata: "pq.FileMetaData", first: int, last: int) -> tuple[list[int], int]:
    """The row groups that contain the rows `first` to `last`, and the first row of the first of them."""
    groups: list[int] = []
    groups_begin = row = 0
    for number in range(metadata.num_row_groups):
        end = row + metadata.row_group(number).num_rows
        if end > first and row <= last:
            groups_begin = groups_begin if groups else row
            groups.append(number)
        row = end
    return groups, groups_begin


def _read_unreadable(_: Path, refs: Sequence[ImageRef], __: DecodeLimits) -> Iterator[Content]:
    return (UndecodableImage(ref.reason) for ref in refs)


def _size_error(size: int, limits: DecodeLimits) -> UndecodableImage | None:
    if size <= limits.max_megabytes * 1e6:
        return None
    return UndecodableImage(f"is {size / 1e6:,.4g} MB; the limit is {limits.max_megabytes:g}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: Mapping[str, Callable[[Path, Sequence[ImageRef], DecodeLimits], Iterator[Content]]] = {
    "file": _read_file,
    "tar": _read_tar,
    "parquet": _read_parquet,
    "unreadable": _read_unreadable,
}
"""Kind of a reference -> function that reads the references of that kind into one file."""

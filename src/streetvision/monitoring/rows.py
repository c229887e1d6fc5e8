"""Read the predictions that `predict --out` and the log of `serve` write, in batches of complete lines.

Shapes: N predictions of a batch, C components, Q quality values.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from streetvision.bundle.batch.shards import MANIFEST, ShardManifest
from streetvision.bundle.reference import decode_components
from streetvision.contracts.errors import ArtifactError, DataError
from streetvision.data.quality import ImageQuality
from streetvision.io.atomic import check_regular
from streetvision.io.validators import validate_json

FloatArray = NDArray[np.float64]

BATCH_BYTES = 4 * 2**20
MAX_LINE_BYTES = 64 * 2**10
TAIL_BYTES = 4096
"""Bytes before a position whose digest identifies what was read."""
MAX_VALUE = 1e9
"""Bound of margins, quality values and times."""
DAMAGED = (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)
"""What a damaged line raises."""
NO_SIGNALS_HINT = "predict with --out and --signals, or serve with log=FILE"
OTHER_BUNDLE_HINT = "give the bundle that made the predictions"


class _UnusableLineError(ValueError):
    """A prediction that is not damaged."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class PredictionBatch:
    """Predictions in the order of their file."""

    names: list[str]
    groups: list[str | None]
    margins: FloatArray
    """(N,)"""
    probabilities: FloatArray
    """(N,) calibrated."""
    decisions: NDArray[np.int64]
    """(N,) 0 or 1."""
    components: NDArray[np.float32]
    """(N, C)"""
    quality: FloatArray
    """(N, Q); NaN: no value."""
    times: FloatArray
    """(N,) seconds since 1970; NaN: no time."""
    failures: int
    """Images that could not be decoded, in addition to N."""


@dataclass(frozen=True)
class PredictionFile:
    """A file of predictions."""

    path: Path
    key: int
    """Digest of its first line, 64 bits: a file that is renamed or grows keeps it."""


class FilePosition(NamedTuple):
    """How far a file was read."""

    offset: int
    """Bytes that were read."""
    tail: int
    """Digest of the last TAIL_BYTES of them, 64 bits."""


BEGIN = FilePosition(0, 0)


def list_files(sources: Sequence[Path], *, bundle: str) -> list[PredictionFile]:
    """List the files of predictions; empty files are left out, and so is a file that is the beginning of another.

    Args:
        sources: Files, folders of `predict --out`, and other folders with .jsonl files.
        bundle: Digest of the bundle that the predictions must come from.

    Raises:
        DataError: A source does not exist, a folder has no files of predictions, two different files have the same
            first line, or a first line is too long.
        ArtifactError: A folder has predictions of another bundle, or without signals.
    """
    files: dict[int, PredictionFile] = {}
    for source in sources:
        for path in _paths(source, bundle):
            with _open(path) as handle:
                first = handle.readline(MAX_LINE_BYTES)
            if first.endswith(b"\n"):
                key = _digest(first)
                files[key] = PredictionFile(_longer(files[key].path, path) if key in files else path, key)
            elif len(first) == MAX_LINE_BYTES:
                raise _long_line(path, 0)
    return list(files.values())


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _longer(first: Path, second: Path) -> Path:
    """The longer one of two files of which one is the beginning of the other."""
    with _open(first) as one, _open(second) as two:
        while True:
            left, right = one.read(BATCH_BYTES), two.read(BATCH_BYTES)
            common = min(len(left), len(right))
            if left[:common] != right[:common]:
                raise DataError(
                    f"{str(first)!r} and {str(second)!r} have the same first line and different lines after it",
                    "give one of them: each image must be predicted once",
                )
            if common < BATCH_BYTES:
                return first if len(left) >= len(right) else second


def _long_line(path: Path, offset: int) -> DataError:
    return DataError(f"{str(path)!r} has a line of more than {MAX_LINE_BYTES:,} bytes at {offset:,}")


def _paths(source: Path, bundle: str) -> list[Path]:
    if not source.is_dir():
        return [source]
    folder = source
    if (source / MANIFEST).is_file():
        manifest = validate_json(source / MANIFEST, ShardManifest)
        if manifest.bundle != bundle:
            raise ArtifactError(
                f"{str(source)!r} has predictions of bundle {manifest.bundle[:12]}, not of {bundle[:12]}",
                OTHER_BUNDLE_HINT,
            )
        if not manifest.signals:
            raise ArtifactError(f"{str(source)!r} has predictions without signals", NO_SIGNALS_HINT)
        folder = source / "predictions"
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise DataError(f"folder {str(source)!r} has no files of predictions (*.jsonl)")
    return paths


def _open(path: Path) -> BinaryIO:
    try:
        check_regular(path)
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def read_batches(
    path: Path, start: FilePosition, *, components: int, bundle: str, end: int | None = None
) -> Iterator[tuple[PredictionBatch, FilePosition]]:
    """Yield the complete lines of a file in batches, each with the position of its end.

    Args:
        path: The file.
        start: Where to start: BEGIN, or the position after an earlier batch of this file.
        components: C.
        bundle: Digest of the bundle; lines that name another one are refused.
        end: Where to stop, in bytes; None: at the last complete line.

    Raises:
        ArtifactError: The file has other content before `start`.
        DataError: A line is damaged or has no signals.
    """
    with _open(path) as handle:
        size, offset = handle.seek(0, 2) if end is None else end, start.offset
        if start != BEGIN and (offset > size or _position(handle, offset) != start):
            raise ArtifactError(
                f"{str(path)!r} has other content than the file with the same first line of which {offset:,} bytes "
                "were read before",
                "restore that file, or leave this one out: each image must be predicted once",
            )
        handle.seek(offset)
        while offset < size:
            data = handle.read(min(BATCH_BYTES, size - offset))
            complete = data[: data.rfind(b"\n") + 1]
            if not complete:
                if len(data) > MAX_LINE_BYTES:
                    raise _long_line(path, offset)
                return  # a line that is still being written
            batch = _parse(complete, f"{str(path)!r} from byte {offset:,}", components, bundle)
            offset += len(complete)
            yield batch, _position(handle, offset)
            handle.seek(offset)


def _position(handle: BinaryIO, offset: int) -> FilePosition:
    length = min(TAIL_BYTES, offset)
    handle.seek(offset - length)
    return FilePosition(offset, _digest(handle.read(length)))


def _parse(data: bytes, where: str, components: int, bundle: str) -> PredictionBatch:
    """The predictions of complete lines; an error names the first line that is damaged."""
    lines = data.splitlines()
    try:
        return _read(lines, components, bundle)
    except DAMAGED:
        for number, line in enumerate(lines, start=1):
            try:
                _read([line], components, bundle)
            except DAMAGED as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
                hint = error.hint if isinstance(error, _UnusableLineError) else None
                raise DataError(f"{where}, line {number}: {reason}", hint) from error
        raise


def _read(lines: list[bytes], components: int, bundle: str) -> PredictionBatch:
    """As `_parse`; raises one of DAMAGED. One call of the parser for all lines takes half of the time."""
    rows = _from_json(b"[" + b",\n".join(lines) + b"]")
    if len(rows) != len(lines):
        raise ValueError("a line is not one object")
    failures = sum("error" in row for row in rows)
    if failures:
        rows = [row for row in rows if "error" not in row]
    if any(row.get("bundle", bundle) != bundle for row in rows):
        raise _UnusableLineError("the prediction comes from another bundle", OTHER_BUNDLE_HINT)
    if not all("signals" in row for row in rows):
        raise _UnusableLineError("the prediction has no signals", NO_SIGNALS_HINT)
    signals = [row["signals"] for row in rows]
    names, groups = [row["image"] for row in rows], [row.get("group") for row in rows]
    if not set(map(type, names)) <= {str}:
        raise ValueError("image must be text")
    if not set(map(type, groups)) <= {str, type(None)}:
        raise ValueError("group must be text")
    return PredictionBatch(
        names,
        groups,
        _numbers("margin", [signal["margin"] for signal in signals], -MAX_VALUE, MAX_VALUE),
        _numbers("probability", [row["probability"] for row in rows], 0, 1),
        _numbers("decision", [row["decision"] for row in rows], 0, 1).astype(np.int64),
        decode_components([signal["features"] for signal in signals], components),
        _quality([signal["quality"] for signal in signals]),
        _numbers("time", [row.get("time") for row in rows], -MAX_VALUE, 1e3 * MAX_VALUE, optional=True),
        failures,
    )


def _from_json(data: bytes) -> Any:
    """Parse with pydantic, which is faster; names that are not UTF-8 need the parser of Python."""
    try:
        return pydantic_core.from_json(data)
    except ValueError:
        return json.loads(data)


def _numbers(name: str, values: list[Any], low: float, high: float, *, optional: bool = False) -> FloatArray:
    kinds = {int, float, type(None)} if optional else {int, float}
    if not set(map(type, values)) <= kinds:
        raise ValueError(f"{name} must be a number")
    array = np.array(values, dtype=np.float64)
    given = array[~np.isnan(array)] if optional else array
    if not ((given >= low) & (given <= high)).all():
        raise ValueError(f"{name} must be between {low:g} and {high:g}")
    return array


def _quality(values: list[Any]) -> FloatArray:
    width = len(ImageQuality._fields)
    if any(type(row) is not list or len(row) != width for row in values):
        raise ValueError(f"quality must be a list of {width} numbers")
    quality = _numbers("quality", list(chain.from_iterable(values)), 0, MAX_VALUE, optional=True).reshape(-1, width)
    if np.isnan(quality[:, :-1]).any():
        raise ValueError("only the last value of quality may be null")
    if (quality[:, -1] > 100).any():
        raise ValueError("the last value of quality must be between 0 and 100")
    return quality


def group_hashes(groups: Sequence[str]) -> NDArray[np.uint32]:
    """Return 32-bit hashes of group ids (N,)."""
    return np.array([zlib.crc32(group.encode(errors="surrogatepass")) for group in groups], dtype=np.uint32)

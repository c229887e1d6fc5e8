"""Files that are either whole or not there: own temp name, fsync, rename; and the digests that name them."""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from streetvision.contracts.errors import ArtifactError

TEMP_SUFFIX = ".tmp"
TEMP_NAME = re.compile(r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
"""Of a file on its way: `atomic_path` makes them."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it appears under its name only when the block ends without an error.

    Raises ArtifactError when the folder cannot be written or the disk is full.
    """
    with atomic_path(path) as temp, temp.open("xb") as handle:
        yield handle


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """The path of a file to be written that takes the place of `path` whole when the block ends, or not at all.

    Raises ArtifactError when the folder cannot be written or the disk is full.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        _sync(temp)
        temp.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temp.unlink()


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """The error for a path that could not be written."""
    return ArtifactError(
        f"cannot write {str(path)!r}: {error.strerror or error}",
        "free some space, or give a folder you may write to (of a run: run_dir=...)",
    )


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` whole or not at all."""
    with open_atomic(path) as handle:
        handle.write(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 `text` whole or not at all."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: object) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinity raise ValueError."""
    write_text_atomic(path, json_text(value))


def json_text(value: object) -> str:
    """`value` as `write_json_atomic` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`; raises ArtifactError when it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def read_json(path: Path) -> object:
    """The JSON value in `path`; raises ArtifactError when it is missing or nothing that `parse_json` takes."""
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is not valid JSON: {error}") from error


def parse_json(data: bytes) -> object:
    """The JSON value in `data`; ValueError if it is no UTF-8 or JSON, too deep, or has NaN, infinity or half a sign."""
    text = data.decode("utf-8-sig")
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    if SURROGATE.search(text):  # half of a sign is an error, a pair of halves is a letter
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half of a sign, {error.object[error.start]!r}") from error
    return value


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes; raises ArtifactError when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def sha256_json(value: object) -> str:
    """Hex sha256 of `value` as canonical JSON; NaN and infinity raise ValueError."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def remove_stray_temps(root: Path) -> None:
    """Delete temp files that a killed process left under `root`."""
    for path in root.rglob(f".*{TEMP_SUFFIX}"):
        named = TEMP_NAME.fullmatch(path.name)
        if named and path.is_file() and not _runs(int(named["pid"])):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process of that number runs: it may be writing still, in a folder of its own below."""
    return pid != os.getpid() and Path("/proc", str(pid)).exists()


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        _refuse_constant(number)
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not allowed")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

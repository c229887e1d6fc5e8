"""Atomic file writes, JSON, and digests."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from streetvision.contracts.errors import ArtifactError

TEMP_SUFFIX = ".tmp"
MAX_NAME_BYTES = 200
MAX_FILE_BYTES = 2**30
"""Largest JSON or YAML file that is read into memory."""
TEMP_NAME = re.compile(r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
"""Names of temporary files, as `atomic_path` builds them."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; the file appears only if the block ends without an error.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full.
    """
    with atomic_path(path) as temp, temp.open("xb") as handle:
        yield handle


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; its file replaces `path` only if the block ends without an error.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full.
    """
    if not path.name:  # the current folder, or the root
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    # The pid lets `remove_stray_temps` keep the files of running processes; the token separates threads.
    # A name of 255 bytes is the longest that file systems take, so that of a temporary file is shortened.
    name = os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])
    temp = path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        # Sync the content before the rename and the folder after it: a power failure leaves the old or the new file.
        _fsync(temp)
        temp.replace(path)
        _fsync(path.parent)
    except OSError as error:
        # Another file was read inside the block: this one could be written.
        if error.filename is not None and Path(os.fsdecode(error.filename)) not in {temp, path, *path.parents}:
            raise
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temp.unlink()


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Return the error for a path that could not be written."""
    return ArtifactError(
        f"cannot write {str(path)!r}: {error.strerror or error}",
        "free disk space, or choose a folder with write permission (for a run: run_dir=...)",
    )


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` atomically."""
    with open_atomic(path) as handle:
        handle.write(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: object) -> None:
    """Write `value` as indented JSON with sorted keys, atomically.

    Raises:
        ValueError: `value` contains NaN or infinity.
        ArtifactError: the folder cannot be written, or the disk is full.
    """
    write_text_atomic(path, json_text(value))


def json_text(value: object) -> str:
    """Return `value` as `write_json_atomic` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_bytes(path: Path) -> bytes:
    """Return the content of `path`.

    Raises:
        ArtifactError: it cannot be read, is not a regular file, or is larger than 1 GiB.
    """
    try:
        check_regular(path, limit=MAX_FILE_BYTES)
        return path.read_bytes()
    except OSError as error:
        raise _cannot_read(path, error) from error


def check_regular(path: Path, *, limit: int | None = None) -> None:
    """Raise ArtifactError unless `path` is a regular file of at most `limit` bytes; a pipe would be read for ever.

    Raises:
        OSError: the file does not exist or is a folder, or its folder cannot be read.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{str(path)!r} is not a regular file")
    if limit is not None and status.st_size > limit:
        raise ArtifactError(f"{str(path)!r} has {status.st_size:,} bytes; the limit is {limit:,}")


def read_json(path: Path) -> object:
    """Return the JSON value in `path`; raises ArtifactError if it cannot be read or `parse_json` rejects it."""
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is not valid JSON: {error}") from error


def parse_json(data: bytes) -> object:
    """Return the JSON value in `data`.

    Raises:
        ValueError: `data` is not UTF-8 or not JSON, is nested too deeply, or has NaN, infinity or a lone surrogate.
    """

    def reject_constant(name: str) -> object:
        raise ValueError(f"{name} is not allowed")

    def parse_finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is not finite")
        return value

    text = data.decode("utf-8-sig")
    try:
        value: object = json.loads(text, parse_constant=reject_constant, parse_float=parse_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # A pair of surrogate escapes is one character; a lone surrogate cannot be written as UTF-8 later.
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it contains a lone surrogate, {error.object[error.start]!r}") from error
    return value


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file; raises ArtifactError if it cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise _cannot_read(path, error) from error


def sha256_json(value: object) -> str:
    """Return the hex sha256 of `value` as canonical JSON; raises ValueError for NaN and infinity."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def remove_stray_temps(root: Path) -> None:
    """Delete the temporary files under `root` whose process no longer runs; on Windows, those of this process only."""
    for path in root.rglob(f".*{TEMP_SUFFIX}"):
        match = TEMP_NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        pid = int(match["pid"])
        if pid == os.getpid() or not _may_run(pid):
            path.unlink(missing_ok=True)


def _may_run(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def _cannot_read(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

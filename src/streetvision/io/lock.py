"""One run folder, one writer."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import cannot_write

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go() -> None:
    """Close what a fork inherited: a worker that outlives its killed parent would keep the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def run_lock(path: Path, *, option: str = "run_dir=...") -> Iterator[None]:
    """Hold the lock file at `path`; the kernel lets go of it when the process ends, however it ends.

    `option` is how another folder is asked for. Raises ArtifactError that names the process when another one holds it.
    """
    with _opened(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ArtifactError(
                f"folder {str(path.parent)!r} is in use by {holder}",
                f"wait for it to end, or give a folder of its own: {option}",
            ) from error
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()}")
        handle.flush()
        _held.add(handle.fileno())
        try:
            yield
        finally:
            _held.discard(handle.fileno())


def _opened(path: Path) -> IO[str]:
    """The lock file, made where there is none; never another file that a link of its name leads to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise ArtifactError(f"{str(path)!r} is not a plain file of its own", "remove it, and run the same line again")
    return os.fdopen(descriptor, "r+")

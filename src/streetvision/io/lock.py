"""One run folder, one writer."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    try:
        handle = path.open("a+")
    except OSError as error:
        raise cannot_write(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ArtifactError(
                f"folder {str(path.parent)!r} is in use by {holder}",
                f"wait for it to end, or give a folder of its own: {option}",
            ) from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        _held.add(handle.fileno())
        try:
            yield
        finally:
            _held.discard(handle.fileno())

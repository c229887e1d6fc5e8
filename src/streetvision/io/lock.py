"""The lock of a run folder: one writer at a time."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import cannot_write

_held: set[int] = set()
"""File descriptors of the locks that this process holds."""


def _close_inherited_locks() -> None:
    # A fork inherits the lock. A worker that outlives its killed parent must not keep it.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def run_lock(path: Path, *, option: str = "run_dir=...") -> Iterator[None]:
    """Hold the lock file at `path`. The kernel releases it when the process ends for any reason.

    Args:
        path: the lock file; created if missing.
        option: the command line option that selects another folder, for the hint.

    Raises:
        ArtifactError: another process holds the lock, or the lock file cannot be created or is a link.
    """
    # O_NOFOLLOW and the link count: the lock is written to, so it must not lead to another file.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    with os.fdopen(descriptor, "r+") as handle:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ArtifactError(f"{str(path)!r} is not a regular file with one link", "remove it and run again")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = handle.read().strip() or "another process"
            raise ArtifactError(
                f"folder {str(path.parent)!r} is in use by {holder}",
                f"wait for it to end, or use another folder: {option}",
            ) from error
        handle.truncate()
        handle.write(f"process {os.getpid()}")
        handle.flush()
        _held.add(descriptor)
        try:
            yield
        finally:
            _held.discard(descriptor)

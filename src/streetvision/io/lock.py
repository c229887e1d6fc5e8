"""The lock of a folder or a file: one writer at a time."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streetvision.contracts.errors import ArtifactError, MachineError
from streetvision.io.atomic import cannot_write

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)  # other processes could not read the locked byte
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCKED_BYTE = 1 << 20
"""Position after the text of the lock file."""
_held: set[int] = set()
"""File descriptors of the locks that this process holds."""


def _close_inherited_locks() -> None:
    # A fork inherits the lock. A worker that outlives its killed parent must not keep it.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def run_lock(path: Path, *, option: str = "run_dir=...", file: Path | None = None) -> Iterator[None]:
    """Hold the lock file at `path`. The kernel releases it when the process ends for any reason.

    Args:
        path: the lock file; created if missing.
        option: the command line option that selects another folder or file, for the hint.
        file: the file that the lock is for; None: the folder of the lock file.

    Raises:
        ArtifactError: another process holds the lock, or the lock file cannot be created or is a link.
        MachineError: the file system has no locks.
    """
    kind, locked = ("folder", path.parent) if file is None else ("file", file)
    # O_NOFOLLOW and the link count: the lock is written to, so it must not lead to another file.
    no_links = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | no_links, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    with os.fdopen(descriptor, "r+") as handle:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ArtifactError(f"{str(path)!r} is not a regular file with one link", "remove it and run again")
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise MachineError(
                    f"the file system of {str(path.parent)!r} cannot lock files: {error.strerror}",
                    f"use a {kind} on a local disk: {option}",
                ) from error
            holder = handle.read().strip() or "another process"
            raise ArtifactError(
                f"{kind} {str(locked)!r} is in use by {holder}",
                f"wait for it to end, or use another {kind}: {option}",
            ) from error
        handle.truncate()
        handle.write(f"process {os.getpid()}")
        handle.flush()
        _held.add(descriptor)
        try:
            yield
        finally:
            _held.discard(descriptor)

"""How a command ends: its exit code, and one line for what a user can mend."""

import errno
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from functools import wraps
from io import TextIOWrapper
from typing import NoReturn

import typer

from streetvision.contracts.errors import StreetVisionError

USER_ERROR = 2
COLLAPSED = 3
INTERRUPTED = 130
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
NO_SUCH_PLACE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
"""What a path is answered with that no file can have, or that is a file where a folder should be, or the reverse."""


@contextmanager
def report_errors(*, debug: bool) -> Iterator[None]:
    """End the process with exit code 2 and no traceback for what a user can mend; with `debug`, as Python would."""
    try:
        yield
    except StreetVisionError as error:
        if debug:
            raise
        _fail(error.message, error.hint)
    except OSError as error:
        if debug or error.errno not in CANNOT_WRITE | NO_SUCH_PLACE:
            raise
        if error.errno in NO_SUCH_PLACE:
            _fail(f"{error.filename or 'a file'}: {error.strerror}", "give another path")
        _fail(
            f"cannot write {error.filename or 'a file'}: {error.strerror}", "free some space, or choose another folder"
        )
    except RuntimeError as error:
        if debug or not (isinstance(error, BrokenExecutor) or "DataLoader worker" in str(error)):
            raise
        _fail(
            "a worker process was killed",
            "run the same line again and it goes on; fewer loader.num_workers= need less memory",
        )


def escape_unprintable() -> None:
    """Let this process print file names that are no text, or not in the terminal's encoding, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def interruptible(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, ending with a sentence instead of "Aborted!" when it is interrupted."""

    @wraps(verb)
    def run(*arguments: object, **options: object) -> None:
        try:
            verb(*arguments, **options)
        except KeyboardInterrupt:
            typer.echo("interrupted; run the same line again and it goes on with the phase it was in", err=True)
            sys.exit(INTERRUPTED)

    return run


def _fail(message: str, hint: str | None) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"       {hint}", err=True)
    sys.exit(USER_ERROR)

"""Exit codes of a command, and its error messages: `error:` with the problem, `hint:` with one action."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import typer

from streetvision.contracts.errors import StreetVisionError
from streetvision.io.user_paths import user_path

USER_ERROR = 2
COLLAPSED = 3
INTERRUPTED = 130
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
INVALID_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
"""The name is not allowed, or a file is where a folder should be, or the reverse."""


@contextmanager
def report_errors(*, debug: bool) -> Iterator[None]:
    """Print a user error without traceback and exit with code 2; with `debug`, raise it."""
    try:
        yield
    except StreetVisionError as error:
        if debug:
            raise
        _exit_with(error.message, error.hint)
    except OSError as error:
        if debug or error.errno not in CANNOT_WRITE | INVALID_PATH:
            raise
        path = error.filename or "a file"
        if error.errno in INVALID_PATH:
            _exit_with(f"{path}: {error.strerror}", "give another path")
        _exit_with(f"cannot write {path}: {error.strerror}", "free disk space, or choose another folder")
    except RuntimeError as error:
        # A killed worker reports itself in these two ways, with no type of its own.
        if debug or not (isinstance(error, BrokenExecutor) or "DataLoader worker" in str(error)):
            raise
        _exit_with(
            "a worker process was killed",
            "run the same command again to resume; a smaller loader.num_workers needs less memory",
        )


def prepare_streams() -> None:
    """Print characters that the terminal's encoding lacks, and bytes that are not text, as escapes.

    Without standard error, messages are lost. Without standard output, the command ends, because its result would be.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    if sys.stdout is None:
        _exit_with("standard output is closed", "redirect it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def flushed_output() -> Iterator[None]:
    """Write out what is buffered before the command ends, so that a full disk or a closed pipe is reported."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in {errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF}:
            raise
        # The interpreter flushes again when it ends, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit_with(f"standard output cannot be written: {error.strerror}", None)


def prepare_verb(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with `~` expanded in its paths, and a message and exit code 130 on Ctrl-C, instead of "Aborted!"."""

    @wraps(verb)
    def run(**options: object) -> None:
        try:
            verb(**{name: _expand_home(value) for name, value in options.items()})
        except KeyboardInterrupt:
            typer.echo("interrupted; run the same command again to resume", err=True)
            sys.exit(INTERRUPTED)

    return run


def _expand_home(value: object) -> object:
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    return user_path(value) if isinstance(value, Path) else value


def _exit_with(message: str, hint: str | None) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint:  {hint}", err=True)
    sys.exit(USER_ERROR)

"""Exit codes of a command, and its error messages: `error:` with the problem, `hint:` with one action."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import typer

from streetvision.contracts.errors import StreetVisionError, missing_package
from streetvision.io.user_paths import user_path

USER_ERROR = 2
COLLAPSED = 3
ALARM = 4
INTERRUPTED = 130
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
NO_PERMISSION = {errno.EACCES, errno.EPERM}
KILLED_WORKER_HINT = "run the same command again to resume; a smaller loader.num_workers needs less memory"
GPU_MEMORY_HINT = (
    "set loader.batch_size=8, for fine-tuning training.micro_batch_size=4, or a smaller model.image_tokens"
)
SHARED_MEMORY_HINT = "set loader.num_workers=0, or enlarge it (docker run --shm-size=2g)"
SHARED_MEMORY_MODULES = tuple(f"multiprocessing/{name}.py" for name in ("synchronize", "shared_memory", "heap"))
"""Files of multiprocessing that create semaphores and shared memory."""
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
    except ModuleNotFoundError as error:
        if debug or (missing := missing_package(error)) is None:
            raise
        _exit_with(missing.message, missing.hint)
    except OSError as error:
        if debug:
            raise
        if _is_about_shared_memory(error):
            _exit_with(f"shared memory (/dev/shm) cannot be used: {error.strerror or error}", SHARED_MEMORY_HINT)
        if error.errno not in CANNOT_WRITE | INVALID_PATH:
            raise
        path = os.fsdecode(error.filename) if error.filename else "a file"
        if error.errno in INVALID_PATH:
            _exit_with(f"{path}: {error.strerror}", "give another path")
        if error.errno in NO_PERMISSION and Path(path).exists() and not os.access(path, os.R_OK):
            _exit_with(f"cannot read {path}: {error.strerror}", "allow this user to read it")
        if error.errno in NO_PERMISSION:
            _exit_with(f"no permission for {path}: {error.strerror}", "allow this user to use it, or give another path")
        _exit_with(f"cannot write {path}: {error.strerror}", "free disk space, or choose another folder")
    except RuntimeError as error:
        if debug:
            raise
        if _is_about_shared_memory(error):
            _exit_with("a worker process has too little shared memory (/dev/shm)", SHARED_MEMORY_HINT)
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which need not be installed
            _exit_with("the GPU has too little memory", GPU_MEMORY_HINT)
        # A killed worker reports itself in these two ways, with no type of its own.
        if not (isinstance(error, BrokenExecutor) or "DataLoader worker" in str(error)):
            raise
        _exit_with("a worker process was killed", KILLED_WORKER_HINT)


def _is_about_shared_memory(error: BaseException) -> bool:
    """Whether an error comes from the memory that processes share: of torch, or of the locks of multiprocessing."""
    text = str(error)
    if "shared memory" in text or "/dev/shm" in text or "/torch_" in text or "Bus error" in text:  # noqa: S108
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, OSError) and any(frame.filename.endswith(SHARED_MEMORY_MODULES) for frame in frames)


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
        if any("multiprocessing" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)):
            _exit_with("a worker process was killed", KILLED_WORKER_HINT)
        # The interpreter flushes again when it ends, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit_with(f"standard output cannot be written: {error.strerror}", None)


def prepare_verb(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with `~` expanded in its paths, and messages for Ctrl-C and a closed pipe instead of those of Click."""

    @wraps(verb)
    def run(**options: object) -> None:
        try:
            with flushed_output():
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

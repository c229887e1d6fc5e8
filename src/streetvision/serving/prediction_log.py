"""The log of predictions that `streetvision monitor` reads: what was predicted, never the image."""

import hashlib
import json
import os
import re
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from streetvision.bundle.predictor import Prediction
from streetvision.contracts.errors import ConfigError
from streetvision.io.lock import run_lock

MAX_LINE_BYTES = 2**16
"""Longest line of a log."""
FIELDS = {"image", "time", "bundle", "signals"}
"""Fields of each line, by which a log is recognized."""
LINE_START = b'{"image": "", "time": '
"""Start of a line, without the name of the image."""
IMAGE_NAME = re.compile(rb'(?<=^\{"image": ")([^"\\]|\\.?)*')


class PredictionLog:
    """A file to which each prediction is appended as one line of JSON. One server writes to it.

    After the file was renamed or deleted, for example by logrotate, the next line begins a new file.

    Args:
        path: The file; created if it does not exist. A line that an earlier process left incomplete is removed.
        bundle: Digest of the bundle, which each line names.

    Raises:
        ConfigError: The file cannot be written, or has other content than predictions of a server with this bundle.
        ArtifactError: Another server writes to it.
    """

    def __init__(self, path: Path, *, bundle: str) -> None:
        self._path, self._bundle = path, bundle
        self.errors = 0
        """Number of predictions that could not be written."""
        self._lock = ExitStack()
        try:
            self._file = path.open("a+b", buffering=0)
            lock = run_lock(path.with_name(f".{path.name}.lock"), option="log=FILE", file=path)
            self._lock.enter_context(lock)
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            first, newline, _ = self._file.read(MAX_LINE_BYTES).partition(b"\n")
            is_incomplete = not newline and len(first) == end and _is_start_of_line(first)
            logged = bundle if is_incomplete else _bundle(first)
            if logged is None:
                raise ConfigError(f"{str(path)!r} is not a log of predictions", "set log= to another file")
            if logged != bundle:
                raise ConfigError(
                    f"{str(path)!r} is a log of bundle {logged[:12]}, not of {bundle[:12]}", "set log= to another file"
                )
            self._file.seek(max(0, end - MAX_LINE_BYTES))
            tail = self._file.read()
            self._file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write the log {str(path)!r}: {error}", "set log= to another file") from error

    def write(self, prediction: Prediction, body: bytes, *, name: str | None, group: str | None) -> None:
        """Append a prediction.

        Args:
            prediction: With signals.
            body: The image file, of which only the digest is written, if it has no name.
            name: Name of the image.
            group: Its group.
        """
        signals = prediction.signals
        assert signals is not None
        row = {
            "image": name or hashlib.sha256(body).hexdigest(),
            "time": round(time.time(), 3),
            "bundle": self._bundle,
            "label": prediction.label,
            "decision": prediction.decision,
            "probability": prediction.probability,
            "certified": prediction.certified,
            "signals": {"margin": signals.margin, "features": signals.features, "quality": list(signals.quality)},
        }
        if group is not None:
            row["group"] = group
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with suppress(OSError):
            if not self._is_at_its_path():
                renamed, self._file = self._file, self._path.open("a+b", buffering=0)
                renamed.close()
            end = self._file.seek(0, os.SEEK_END)
            if self._file.write(line) == len(line):
                return
            self._file.truncate(end)  # the disk is full, and a part of the line was written
        self.errors += 1  # a prediction is still a prediction; /metrics counts what the log lacks

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


def _bundle(line: bytes) -> str | None:
    """The digest of the bundle that a line names; None if it is not a line of a log."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return str(row["bundle"]) if isinstance(row, dict) and row.keys() >= FIELDS else None


def _is_start_of_line(text: bytes) -> bool:
    """Whether a process that was killed while it wrote a line may have left this."""
    unnamed = IMAGE_NAME.sub(b"", text, count=1)
    return unnamed.startswith(LINE_START) or LINE_START.startswith(unnamed)

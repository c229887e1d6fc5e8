"""The log of predictions that `streetvision monitor` reads: what was predicted, never the image."""

import hashlib
import json
import os
import time
from pathlib import Path

from streetvision.bundle.predictor import Prediction
from streetvision.contracts.errors import ConfigError

TAIL_BYTES = 2**16
"""Longest incomplete line at the end of a log."""


class PredictionLog:
    """A file to which each prediction is appended as one line of JSON. One server writes to it.

    Args:
        path: The file; created if it does not exist. A line that an earlier process left incomplete is removed.
        bundle: Digest of the bundle, which each line names.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path, *, bundle: str) -> None:
        self._bundle = bundle
        self.errors = 0
        """Number of predictions that could not be written."""
        try:
            self._file = path.open("a+b", buffering=0)
            self._end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, self._end - TAIL_BYTES))
            tail = self._file.read()
            self._end -= len(tail) - tail.rfind(b"\n") - 1
            self._file.truncate(self._end)
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
        try:
            if self._file.write(line) != len(line):
                raise OSError("the disk is full")
            self._end += len(line)
        except OSError:  # a prediction is still a prediction; /metrics counts what the log lacks
            self.errors += 1
            self._file.truncate(self._end)

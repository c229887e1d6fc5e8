"""The state of a monitored stream: one file of bounded size, written as a whole or not at all.

Shapes: F files of predictions, U groups, L labels, G bins, R rates, E bets.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.numpy import save

from streetvision.bundle.monitor_status import STATE_HINT, MonitorStatus
from streetvision.contracts.errors import ArtifactError, DataError
from streetvision.contracts.policies import Artifact
from streetvision.io.arrays import read_arrays
from streetvision.io.atomic import write_bytes_atomic
from streetvision.models.backbone_spec import one_line
from streetvision.monitoring.history import MAX_WINDOWS, History
from streetvision.monitoring.martingale import ExchangeabilityTest
from streetvision.monitoring.rows import FilePosition

MAX_GROUPS = 10_000_000
MAX_FILES = 200_000
MAX_LABELS = 500_000
MAX_EXAMPLES = 12
SEEDS = 2**31
"""Number of seeds."""
HISTORY_ARRAYS = ("count", "probability", "quality", "components", "martingale", "time")


class StateHeader(Artifact):
    """The numbers of the state that are not arrays."""

    schema_version: Literal[2] = 2
    seed: int = Field(ge=0, lt=SEEDS)
    steps: dict[str, int]
    log_max: dict[str, float]
    width: int = Field(ge=1)
    labels: int = Field(ge=0)
    errors: int = Field(ge=0)
    examples: tuple[tuple[float, str], ...] = Field(max_length=MAX_EXAMPLES)
    """Distance and name of the images that are least like the reference, the largest distance first."""


@dataclass
class MonitorState:
    """The state in memory."""

    seed: int
    tests: dict[str, ExchangeabilityTest]
    history: History
    files: dict[int, FilePosition] = field(default_factory=dict)
    """Key of each file -> how far it was read."""
    groups: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))
    """(U,) sorted hashes of the groups that were counted."""
    seen_labels: set[int] = field(default_factory=set)
    """Hashes of the labeled images, and of their groups, that were counted."""
    labels: int = 0
    errors: int = 0
    examples: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def new(cls, reference_counts: dict[str, NDArray[np.int64]], components: int, seed: int | None) -> "MonitorState":
        """Return the state before the first image.

        Args:
            reference_counts: Test -> (G,) values of the reference by bin.
            components: Number of components of the features.
            seed: Seed for ties; None: a random one.
        """
        drawn = secrets.randbelow(SEEDS) if seed is None else seed
        tests = {
            name: ExchangeabilityTest(drawn + number, counts.copy())
            for number, (name, counts) in enumerate(reference_counts.items())
        }
        return cls(drawn, tests, History.empty(components))

    def count_groups(self, hashes: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return which of N images are the first of their group, and remember the groups (N,).

        Raises:
            DataError: There are more than MAX_GROUPS groups.
        """
        unique, first = np.unique(hashes, return_index=True)
        position = np.searchsorted(self.groups, unique)
        known = np.zeros(len(unique), dtype=np.bool_)
        inside = position < len(self.groups)
        known[inside] = self.groups[position[inside]] == unique[inside]
        if len(self.groups) + (~known).sum() > MAX_GROUPS:
            raise DataError(f"the stream has more than {MAX_GROUPS:,} groups", "start with a new --state file")
        self.groups = np.insert(self.groups, position[~known], unique[~known])
        counts = np.zeros(len(hashes), dtype=np.bool_)
        counts[first[~known]] = True
        return counts

    def write(self, path: Path, status: MonitorStatus) -> None:
        """Write the state atomically."""
        if len(self.files) > MAX_FILES or len(self.seen_labels) > MAX_LABELS:
            raise DataError(
                f"the state has more than {MAX_FILES:,} files of predictions or {MAX_LABELS:,} labels",
                "start with a new --state file",
            )
        header = StateHeader(
            seed=self.seed,
            steps={name: test.steps for name, test in self.tests.items()},
            log_max={name: test.log_max for name, test in self.tests.items()},
            width=self.history.width,
            labels=self.labels,
            errors=self.errors,
            examples=tuple(self.examples),
        )
        files = np.array([(key, *position) for key, position in self.files.items()], dtype=np.uint64).reshape(-1, 3)
        arrays: dict[str, NDArray[Any]] = {
            "files": files,
            "groups": self.groups,
            "seen_labels": np.array(sorted(self.seen_labels), dtype=np.uint64),
            **{f"history.{name}": getattr(self.history, name) for name in HISTORY_ARRAYS},
        }
        for name, test in self.tests.items():
            arrays |= {
                f"{name}.counts": test.counts,
                f"{name}.log_scale": test.log_scale,
                f"{name}.shares": test.shares,
            }
        content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_bytes_atomic(path, save(content, {"status": status.model_dump_json(), "state": header.model_dump_json()}))


def read_state(path: Path, expected: MonitorState) -> MonitorState:
    """Read a state without its status.

    Args:
        path: The state file.
        expected: A new state for the same bundle, whose arrays have the right types and shapes.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    arrays, metadata = read_arrays(path, name="the monitoring state", hint=STATE_HINT)
    try:
        return _restore(StateHeader.model_validate_json(metadata.get("state", "")), arrays, expected)
    except (ValidationError, ValueError, KeyError) as error:
        reason = one_line(error)
        raise ArtifactError(f"cannot read the monitoring state {str(path)!r}: {reason}", STATE_HINT) from error


def _restore(header: StateHeader, arrays: dict[str, NDArray[Any]], expected: MonitorState) -> MonitorState:
    """The state of checked arrays; raises ValueError or KeyError."""

    def take(name: str, like: NDArray[Any], rows: int | None = None) -> NDArray[Any]:
        array = arrays.pop(name)
        shape = like.shape if rows is None else (len(array), *like.shape[1:])
        if array.dtype != like.dtype or array.shape != shape or (rows is not None and len(array) > rows):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and name != "history.time" and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        return array.copy()

    tests = {}
    for name, fresh in expected.tests.items():
        counts = take(f"{name}.counts", fresh.counts)
        shares = take(f"{name}.shares", fresh.shares)
        if (counts < fresh.counts).any() or (shares < 0).any() or header.steps[name] < 0:
            raise ValueError(f"the test {name} has invalid counts")
        if counts.sum() != fresh.counts.sum() + header.steps[name]:
            raise ValueError(f"the test {name} has other counts than steps")
        scale = take(f"{name}.log_scale", fresh.log_scale)
        seed = header.seed + list(expected.tests).index(name)
        tests[name] = ExchangeabilityTest(seed, counts, header.steps[name], scale, shares, header.log_max[name])
    empty = expected.history
    parts = {name: take(f"history.{name}", getattr(empty, name), MAX_WINDOWS) for name in HISTORY_ARRAYS}
    if len({len(part) for part in parts.values()}) != 1 or (parts["count"] < 0).any():
        raise ValueError("the history has windows of different length")
    files = take("files", np.zeros((0, 3), dtype=np.uint64), MAX_FILES)
    groups = take("groups", np.zeros(0, dtype=np.uint32), MAX_GROUPS)
    labels = take("seen_labels", np.zeros(0, dtype=np.uint64), MAX_LABELS)
    if (np.diff(groups.astype(np.int64)) <= 0).any() or header.errors > header.labels:
        raise ValueError("groups or labels are invalid")
    return MonitorState(
        header.seed,
        tests,
        History(header.width, **parts),
        {key: FilePosition(offset, tail) for key, offset, tail in files.tolist()},
        groups,
        set(labels.tolist()),
        header.labels,
        header.errors,
        list(header.examples),
    )

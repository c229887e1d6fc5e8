"""The four data splits, and which phase may open which of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from streetvision.contracts.errors import LeakageError


class Split(StrEnum):
    """The split of a row. Each split has one purpose, so nothing is evaluated on data that it was fitted on."""

    TRAIN = "train"
    """Training."""
    VAL_SELECT = "val_select"
    """Selection of checkpoints and models."""
    VAL_CALIB = "val_calib"
    """Thresholds, calibrators and risk control."""
    VAL_TEST = "val_test"
    """Final evaluation, through the bundle only."""


MAY_OPEN: Mapping[str, frozenset[Split]] = MappingProxyType(
    {
        "data": frozenset(),
        "phase4a_explora": frozenset({Split.TRAIN, Split.VAL_SELECT}),
        "phase1": frozenset({Split.TRAIN, Split.VAL_SELECT, Split.VAL_CALIB}),
        "phase2": frozenset({Split.VAL_CALIB}),
        "phase4c_cvfm": frozenset({Split.TRAIN, Split.VAL_SELECT, Split.VAL_CALIB}),
        "phase5_maccal": frozenset({Split.TRAIN, Split.VAL_SELECT, Split.VAL_CALIB}),
        "phase5": frozenset({Split.VAL_CALIB}),
        "phase6": frozenset(),
        "export_runtime": frozenset({Split.TRAIN, Split.VAL_SELECT}),
        "evaluate": frozenset({Split.VAL_TEST}),
        "evaluate_data": frozenset(),
        "reward": frozenset({Split.VAL_CALIB, Split.VAL_TEST}),
    }
)
"""Phase id or export_runtime -> the splits whose rows or scores it may read. `Context` enforces it."""


def check_may_open(phase: str, split: Split) -> None:
    """Raise LeakageError unless `phase` may open `split`."""
    allowed = MAY_OPEN.get(phase, frozenset())
    if split not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise LeakageError(
            f"{phase} requested {split.value}; it may open: {names}",
            "request a split that MAY_OPEN in contracts/split_contracts.py lists for the phase",
        )


@dataclass(frozen=True)
class Row:
    """One image and its metadata."""

    path: str
    """Posix path relative to the data root, or absolute if the index gives an absolute path."""
    label: int
    """0 or 1, an index of `class_names`; -1 for unlabeled images, which only phase4a_explora reads."""
    sha256: str
    """Hex digest of the file's bytes."""
    width: int
    """Pixels, after EXIF orientation."""
    height: int
    """Pixels, after EXIF orientation."""
    brightness: float
    """Mean luminance, from 0 (black) to 1 (white)."""
    group: str | None = None
    """Group id (a track, a place, a ride). Rows of one group share a split."""
    source: str | None = None
    """Origin of the row; evaluation slices by it."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Other columns of the index, such as weather or camera; evaluation slices by each."""


@dataclass(frozen=True)
class Index:
    """The usable images of a data set."""

    root: Path
    """Folder that the row paths are relative to."""
    class_names: tuple[str, str]
    """Names of class 0 and class 1."""
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over the path, label, content, group and source of all rows; independent of row order and root."""
        lines = sorted(repr((r.path, r.label, r.sha256, r.group, r.source)) for r in self.rows)
        head = repr(self.class_names)
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class NearDuplicateClusters:
    """Clusters of copies and similar views, and the search parameters."""

    radius: int
    """Maximum Hamming distance of two 64-bit perceptual hashes."""
    correlation: float
    """Minimum correlation of two thumbnails."""
    pairs: int
    """Number of near-duplicate pairs."""
    clusters: tuple[tuple[str, ...], ...]
    """Row paths of each connected component of the pairs. Rows of one cluster share a split."""
    copies: tuple[tuple[str, ...], ...] = ()
    """The same by the pairs of copies alone: one photograph, so the labels of a cluster must agree. The other pairs are
    similar views, such as neighbouring frames."""


@dataclass(frozen=True)
class Partition:
    """An index with a split for every row: the content of splits.json."""

    index: Index
    roles: tuple[Split, ...]
    """Split of each row, in the order of `index.rows`."""
    fractions: Mapping[Split, float]
    """Requested share of each split; sums to 1."""
    seed: int
    near_duplicates: NearDuplicateClusters | None = None
    """None if near-duplicates were not searched."""

    @property
    def split_sha256(self) -> str:
        """Hex sha256 over the content and the split of all rows; independent of their order."""
        assignment = sorted(f"{row.sha256} {role}" for row, role in zip(self.index.rows, self.roles, strict=True))
        return hashlib.sha256("\n".join(assignment).encode()).hexdigest()

    def rows(self, split: Split) -> tuple[Row, ...]:
        """Return the rows of one split, in index order."""
        return tuple(row for row, role in zip(self.index.rows, self.roles, strict=True) if role is split)

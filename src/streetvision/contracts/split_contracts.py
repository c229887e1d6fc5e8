"""The four roles that rows of data play, and which phase may open which."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from streetvision.contracts.errors import LeakageError


class Split(StrEnum):
    """The role of a row. Nothing is fitted where it is judged, so every role has one use."""

    TRAIN = "train"
    """Gradients."""
    VAL_SELECT = "val_select"
    """The choice between checkpoints and between models."""
    VAL_CALIB = "val_calib"
    """Thresholds, calibrators and risk control."""
    VAL_TEST = "val_test"
    """The final figures, through the bundle."""


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
"""Phase id, or what else asks a run for images -> the splits whose rows or scores it may read. The Context
enforces it at run time."""


def check_may_open(phase: str, split: Split) -> None:
    """Raise LeakageError unless `phase` may open `split`."""
    allowed = MAY_OPEN.get(phase, frozenset())
    if split not in allowed:
        names = ", ".join(sorted(allowed)) or "no split"
        raise LeakageError(
            f"{phase} asked for {split.value}, and it may open {names} only",
            "what each phase may open is set in contracts/split_contracts.py",
        )


@dataclass(frozen=True)
class Row:
    """One image and what is known of it."""

    path: str
    """Posix path relative to the data root; absolute where the index said so."""
    label: int
    """0 or 1: the position of its class in `class_names`; -1 where nobody gave one, which only phase4a_explora sees."""
    sha256: str
    """Digest of the file's bytes."""
    width: int
    """Pixels, after EXIF orientation."""
    height: int
    """Pixels, after EXIF orientation."""
    brightness: float
    """Mean luminance, from 0 (black) to 1 (white)."""
    group: str | None = None
    """Rows of one group (a track, a place, a ride) never stand in two splits."""
    source: str | None = None
    """Where the row came from; evaluation slices by it."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Whatever else the index says of the row, by column: weather, camera, ...; evaluation slices by each."""


@dataclass(frozen=True)
class Index:
    """The usable images of a data set."""

    root: Path
    """Folder that relative row paths start from."""
    class_names: tuple[str, str]
    """Names of class 0 and class 1."""
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over every row's content, label, group and source; it moves with the data, not with the folder."""
        lines = sorted(repr((r.path, r.label, r.sha256, r.group, r.source)) for r in self.rows)
        head = repr(self.class_names)
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class NearDuplicateClusters:
    """Which rows show nearly the same picture, and how they were looked for."""

    radius: int
    """Bits of 64 by which their perceptual hashes differ at most."""
    correlation: float
    """Least correlation of their thumbnails."""
    pairs: int
    """Pairs that were found."""
    clusters: tuple[tuple[str, ...], ...]
    """Paths of the rows that chains of such pairs join; the rows of one never stand in two splits."""


@dataclass(frozen=True)
class Partition:
    """An index with a role for every row: what splits.json holds."""

    index: Index
    roles: tuple[Split, ...]
    """One a row, in the order of `index.rows`."""
    fractions: Mapping[Split, float]
    """What was asked for; sums to 1."""
    seed: int
    near_duplicates_found: NearDuplicateClusters | None = None
    """None where near-duplicates were not looked for."""

    def rows(self, split: Split) -> tuple[Row, ...]:
        """The rows of one split, in index order."""
        return tuple(row for row, role in zip(self.index.rows, self.roles, strict=True) if role is split)

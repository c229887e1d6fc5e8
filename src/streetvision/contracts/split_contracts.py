"""The four data splits, and which phase may open which of them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from streetvision.contracts.errors import LeakageError

RANDOM_QUEUE = "random"
"""Queue of `streetvision label` that draws images at random."""
NO_FOLD = -1
"""In place of a fold, for rows of VAL_TEST."""


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


class Protocol(StrEnum):
    """How the rows that are not VAL_TEST are used."""

    SPLIT = "split"
    """Each row is TRAIN, VAL_SELECT or VAL_CALIB."""
    CROSS_FIT = "cross_fit"
    """Each row is in one of several folds; which has one of these roles at a time; see `Partition.in_fold`."""


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
MAY_OPEN_OUTSIDE_FOLDS: Mapping[str, frozenset[Split]] = MappingProxyType(
    {
        phase: splits - {Split.VAL_SELECT} - (frozenset() if phase in ("phase2", "phase5") else {Split.VAL_CALIB})
        for phase, splits in MAY_OPEN.items()
    }
)
"""The same under cross_fit for a phase that is in no fold. There TRAIN has the rows of all folds. VAL_CALIB has them as
well, and only the phases that read out-of-fold scores may open it."""


def check_may_open(phase: str, split: Split, *, outside_folds: bool = False) -> None:
    """Raise LeakageError unless `phase` may open `split`.

    Args:
        phase: Phase id or export_runtime.
        split: The split.
        outside_folds: The protocol is cross_fit, and the phase is in no fold.
    """
    table = MAY_OPEN_OUTSIDE_FOLDS if outside_folds else MAY_OPEN
    allowed = table.get(phase, frozenset())
    if split not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        where = " outside the folds of cross_fit" if outside_folds else ""
        raise LeakageError(
            f"{phase} requested {split.value}{where}; it may open: {names}",
            "request a split that contracts/split_contracts.py lists for the phase",
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
    queue: str | None = None
    """Queue of `streetvision label` that selected the image; None: the label is from the data set."""

    @property
    def train_only(self) -> bool:
        """Whether a model selected the image for labeling. Metrics on such images are biased."""
        return self.queue not in (None, RANDOM_QUEUE)


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
    similar views, such as neighboring frames."""


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
    folds: tuple[int, ...] | None = None
    """Fold of each row under cross_fit, where its role is TRAIN; NO_FOLD for VAL_TEST. None under split.

    A row that may be in TRAIN only is trained on in the other folds, and evaluated in none."""

    @property
    def protocol(self) -> Protocol:
        """How the rows are used."""
        return Protocol.SPLIT if self.folds is None else Protocol.CROSS_FIT

    @property
    def n_folds(self) -> int:
        """Number of folds; 0 under split."""
        return max(self.folds or (), default=NO_FOLD) + 1

    @property
    def split_sha256(self) -> str:
        """Hex sha256 over the content, the split and the fold of all rows; independent of their order."""
        folds = self.folds or [None] * len(self.roles)
        assignment = sorted(
            f"{row.sha256} {role}" if fold is None else f"{row.sha256} {role} {fold}"
            for row, role, fold in zip(self.index.rows, self.roles, folds, strict=True)
        )
        return hashlib.sha256("\n".join(assignment).encode()).hexdigest()

    def rows(self, split: Split) -> tuple[Row, ...]:
        """Return the rows of one split, in index order.

        Under cross_fit, VAL_CALIB has the rows of all folds, without those that may be in TRAIN only.
        """
        if self.folds is not None and split is Split.VAL_CALIB:
            return tuple(row for row in self.rows(Split.TRAIN) if not row.train_only)
        return tuple(row for row, role in zip(self.index.rows, self.roles, strict=True) if role is split)

    def in_fold(self, fold: int, *, select: bool = True) -> "Partition":
        """Return the splits of one fold of cross_fit.

        Its rows are VAL_CALIB, the rows of the next fold are VAL_SELECT, and those of the other folds are TRAIN. Rows
        that may be in TRAIN only are left out of the first two.

        Args:
            fold: From 0.
            select: False: the rows of the next fold are TRAIN as well, and VAL_SELECT is empty.
        """
        assert self.folds is not None, "only cross_fit has folds"
        role_of_fold = {NO_FOLD: Split.VAL_TEST, fold: Split.VAL_CALIB}
        if select:
            role_of_fold[(fold + 1) % self.n_folds] = Split.VAL_SELECT
        of_rows = zip(self.index.rows, (role_of_fold.get(of_row, Split.TRAIN) for of_row in self.folds), strict=True)
        kept = [(row, role) for row, role in of_rows if role is Split.TRAIN or not row.train_only]
        index = replace(self.index, rows=tuple(row for row, _ in kept))
        return replace(self, index=index, roles=tuple(role for _, role in kept), folds=None)


def every_nth(rows: Sequence[Row], most: int) -> tuple[Row, ...]:
    """At most `most` of the rows, evenly spaced."""
    return tuple(rows[:: max(1, math.ceil(len(rows) / most))])

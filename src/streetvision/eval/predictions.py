"""Validated predictions of a binary classifier on labeled rows, and the units in which rows are resampled."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, FloatArray, checked_arrays
from streetvision.eval.thresholds import decide

IntArray = NDArray[np.int64]
ARGMAX_THRESHOLD = 0.5
"""Predicts the class with the larger probability."""


@dataclass(frozen=True, init=False, eq=False)
class Predictions:
    """Labels, probabilities and decisions of the same N rows. Checked here, and trusted everywhere else in `eval`.

    The arrays are read-only copies.
    """

    labels: BoolArray
    """(N,)"""
    probabilities: FloatArray
    """(N,) of class 1."""
    groups: Sequence[Hashable] | None
    """(N,) Rows of one group are dependent. A row with the group None is independent; None: all rows are."""
    decisions: BoolArray
    """(N,) True where class 1 is predicted. Need not follow from one threshold on the probabilities."""

    def __init__(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        groups: Sequence[Hashable] | None = None,
        *,
        decisions: ArrayLike | None = None,
    ) -> None:
        """Check the arrays. Without `decisions`, the class with the larger probability is predicted.

        Raises:
            DataError: no rows, arrays of different lengths, labels or decisions other than 0 and 1, probabilities
                outside [0, 1] or not finite.
        """
        truth, p = checked_arrays(labels, probabilities)
        decided = decide(p, ARGMAX_THRESHOLD) if decisions is None else np.asarray(decisions) == 1
        if decided.shape != truth.shape:
            raise DataError(
                f"expected one decision per label, shape {truth.shape}; got shape {decided.shape}",
                "pass 0 or 1 for the same rows as the labels",
            )
        if groups is not None and len(groups) != truth.size:
            raise DataError(
                f"expected one group per row; got {len(groups)} groups for {truth.size} rows",
                "pass None for a row without a group",
            )
        self._set(truth, p.copy(), None if groups is None else tuple(groups), decided)

    @classmethod
    def at_threshold(
        cls, labels: ArrayLike, probabilities: ArrayLike, threshold: float, groups: Sequence[Hashable] | None = None
    ) -> "Predictions":
        """Predictions that decide for class 1 where the probability is at least `threshold`."""
        return cls(labels, probabilities, groups, decisions=decide(np.asarray(probabilities), threshold))

    def subset(self, rows: NDArray[np.intp]) -> "Predictions":
        """The predictions of the rows at these positions, at least one, in this order."""
        groups = None if self.groups is None else tuple(self.groups[row] for row in rows.tolist())
        part = object.__new__(Predictions)
        part._set(self.labels[rows], self.probabilities[rows], groups, self.decisions[rows])
        return part

    @cached_property
    def units(self) -> "ResamplingUnits":
        """The independent units of the rows."""
        return units_of(self.groups, self.labels.size)

    def __len__(self) -> int:
        """The number of rows."""
        return self.labels.size

    def _set(
        self, labels: BoolArray, probabilities: FloatArray, groups: Sequence[Hashable] | None, decisions: BoolArray
    ) -> None:
        for name, array in (("labels", labels), ("probabilities", probabilities), ("decisions", decisions)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "groups", groups)


@dataclass(frozen=True)
class ResamplingUnits:
    """The rows that are drawn together: U groups, or the rows themselves."""

    of_row: IntArray
    """(N,) the unit of each row."""
    count: int
    """U."""

    @property
    def grouped(self) -> bool:
        """False if every row is a unit of its own."""
        return self.count < self.of_row.size

    def reordered(self, order: IntArray) -> "ResamplingUnits":
        """The units of rows[order], numbered by first occurrence; order (N,) is a permutation."""
        if not self.grouped:
            return self
        _, first, of_row = np.unique(self.of_row[order], return_index=True, return_inverse=True)
        return ResamplingUnits(np.argsort(np.argsort(first))[of_row], self.count)

    def counts(self, labels: BoolArray, decisions: BoolArray) -> Counts:
        """The confusion counts (U,) of each unit."""
        cells = (labels & decisions, ~labels & ~decisions, ~labels & decisions, labels & ~decisions)
        return Counts(*(self.sums(cell) for cell in cells))

    def sums(self, values: FloatArray | BoolArray) -> FloatArray:
        """The sums (U,) of values (N,) over each unit."""
        return np.bincount(self.of_row, weights=values, minlength=self.count).astype(np.float64)


def units_of(groups: Sequence[Hashable] | None, n_rows: int) -> ResamplingUnits:
    """The units of `n_rows` rows with these groups. A row with the group None is a unit of its own."""
    if groups is None:
        return ResamplingUnits(np.arange(n_rows), n_rows)
    number: dict[Hashable, int] = {}
    keys = (object() if group is None else group for group in groups)
    of_row = np.array([number.setdefault(key, len(number)) for key in keys])
    return ResamplingUnits(of_row, len(number))

"""Confusion counts of labels and decisions, at one threshold or at every distinct threshold."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Values: TypeAlias = FloatArray | np.float64 | float
"""One number, or an array of numbers: one for each resample or threshold."""


@dataclass(frozen=True)
class Counts:
    """The four confusion counts: numbers, or arrays of one shape. Weighted counts need not be whole numbers."""

    tp: Any
    tn: Any
    fp: Any
    fn: Any

    @property
    def positives(self) -> Any:
        """Rows with label 1."""
        return self.tp + self.fn

    @property
    def negatives(self) -> Any:
        """Rows with label 0."""
        return self.tn + self.fp

    @property
    def total(self) -> Any:
        """All rows."""
        return self.positives + self.negatives


@dataclass(frozen=True)
class ThresholdCounts:
    """The counts at every distinct threshold, from "all positive" to "none positive".

    K is the number of distinct scores; `...` are leading axes, such as resamples.
    Position k predicts "positive" for the rows whose score is at least `scores[k]`; position K for no row.
    """

    scores: FloatArray
    """(K,) distinct, ascending."""
    tp: FloatArray
    """(..., K + 1) true positives, non-increasing."""
    fp: FloatArray
    """(..., K + 1) false positives, non-increasing."""

    @property
    def positives(self) -> FloatArray:
        """(...,) rows with label 1."""
        return self.tp[..., 0]

    @property
    def negatives(self) -> FloatArray:
        """(...,) rows with label 0."""
        return self.fp[..., 0]

    def counts(self, positions: Any = slice(None)) -> Counts:
        """The counts at `positions`: any numpy index of the last axis of `tp`."""
        tp, fp = self.tp[..., positions], self.fp[..., positions]
        # Add an axis for the positions, so that the totals of each resample broadcast.
        shape = (*self.positives.shape, *[1] * (tp.ndim - self.positives.ndim))
        fn, tn = self.positives.reshape(shape) - tp, self.negatives.reshape(shape) - fp
        return Counts(tp=tp, tn=tn, fp=fp, fn=fn)

    def at(self, thresholds: FloatArray) -> Counts:
        """The counts when the rows with a score of at least each of `thresholds` are predicted positive."""
        return self.counts(np.searchsorted(self.scores, thresholds, side="left"))


def confusion_counts(labels: ArrayLike, decisions: ArrayLike) -> Counts:
    """Count the four outcomes of labels (N,) and decisions (N,), both 0 or 1."""
    truth = np.asarray(labels) == 1
    decided = np.asarray(decisions) == 1
    cells = [truth & decided, ~truth & ~decided, ~truth & decided, truth & ~decided]
    return Counts(*(int(np.count_nonzero(cell)) for cell in cells))


def threshold_counts(labels: ArrayLike, probabilities: ArrayLike) -> ThresholdCounts:
    """The counts at every distinct threshold of valid labels (N,) and probabilities (N,), from one sort.

    The arrays are not checked: `Predictions` does that.
    """
    truth, p = np.asarray(labels, dtype=np.bool_), np.asarray(probabilities, dtype=np.float64)
    # The bits of a float64 in [0, 1] sort like the number and leave the sign bit free. The probability, shifted by
    # one bit, and its label fit one 64-bit key, so sorting the keys sorts both without a gather.
    keys = (p + 0.0).view(np.uint64)  # adding 0.0 turns -0.0, which has its sign bit set, into 0.0
    keys <<= np.uint64(1)
    keys |= truth
    keys.sort()
    positives_up_to = np.cumsum(keys.astype(np.uint8) & np.uint8(1), dtype=np.int64)
    keys >>= np.uint64(1)
    last_of_tie = np.append(np.flatnonzero(keys[1:] != keys[:-1]), keys.size - 1)
    tp, fp = np.empty(last_of_tie.size + 1), np.empty(last_of_tie.size + 1)
    tp[0] = positives_up_to[-1]
    tp[1:] = positives_up_to[-1] - positives_up_to[last_of_tie]
    fp[0] = keys.size - tp[0]
    fp[1:] = keys.size - 1 - last_of_tie - tp[1:]
    return ThresholdCounts(scores=keys[last_of_tie].view(np.float64), tp=tp, fp=fp)


def real_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """The values as an array of real numbers, of their own type if they have one.

    Args:
        values: An array, or nested sequences.
        name: What they are, for the message.

    Raises:
        DataError: the values are not numbers, are complex, or have rows of different lengths.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        found = "other values, or rows of different lengths"
    else:
        if array.dtype.kind in "fiub":
            return array
        found = f"values of type {array.dtype}"
    raise DataError(f"{name} must be real numbers; got {found}", "pass an array of numbers")


def checked_arrays(labels: ArrayLike, probabilities: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Labels (N,) as booleans and probabilities (N,) as float64.

    Raises:
        DataError: no rows, different shapes, labels other than 0 and 1, probabilities outside [0, 1], not finite or not
            numbers.
    """
    truth = checked_labels(labels)
    p = real_array(probabilities, "probabilities").astype(np.float64, copy=False)
    if p.shape != truth.shape:
        raise DataError(
            f"expected one probability per label, shape {truth.shape}; got shape {p.shape}",
            "pass the probability of class 1 of the same rows as the labels",
        )
    if not (p.min() >= 0.0 and p.max() <= 1.0):  # NaN fails both comparisons
        invalid = int(np.count_nonzero(~((p >= 0.0) & (p <= 1.0))))
        raise DataError(
            f"{invalid} of {p.size} probabilities are not in [0, 1]",
            "convert logits to probabilities, and find the rows with non-finite model output",
        )
    return truth, p


def checked_labels(labels: ArrayLike) -> BoolArray:
    """Labels (N,) as booleans.

    Raises:
        DataError: no rows, another number of dimensions, labels other than 0 and 1.
    """
    values = real_array(labels, "labels")
    if values.ndim != 1 or values.size == 0:
        raise DataError(
            f"expected a one-dimensional array of at least one label; got shape {values.shape}",
            "check that the split has images",
        )
    truth: BoolArray = values == 1
    if not np.all(truth | (values == 0)):
        invalid = np.unique(values[~(truth | (values == 0))])[:3].tolist()
        raise DataError(f"labels must be 0 or 1; found {invalid}", "map the class names to 0 and 1")
    return truth

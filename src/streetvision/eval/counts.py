"""Labels against decisions, counted at one cut or at every cut of a set of probabilities."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Values: TypeAlias = FloatArray | np.float64 | float
"""One number, or an array of them: one for each resample or threshold."""


@dataclass(frozen=True)
class Counts:
    """How often each outcome happened: numbers, or arrays of one shape. Weighted counts need not be whole."""

    tp: Any
    tn: Any
    fp: Any
    fn: Any

    @property
    def positives(self) -> Any:
        """Rows whose label is 1."""
        return self.tp + self.fn

    @property
    def negatives(self) -> Any:
        """Rows whose label is 0."""
        return self.tn + self.fp

    @property
    def total(self) -> Any:
        """All rows."""
        return self.positives + self.negatives


@dataclass(frozen=True)
class Cuts:
    """Every decision that one threshold can make, from "all positive" to "none positive".

    Legend: K distinct scores; `...` any leading axes, such as resamples.
    Cut k decides "positive" for the rows whose score is at least `scores[k]`; cut K for none.
    """

    scores: FloatArray
    """(K,) distinct, ascending."""
    tp: FloatArray
    """(..., K + 1) true positives, never rising."""
    fp: FloatArray
    """(..., K + 1) false positives, never rising."""

    @property
    def positives(self) -> FloatArray:
        """(...,) rows whose label is 1."""
        return self.tp[..., 0]

    @property
    def negatives(self) -> FloatArray:
        """(...,) rows whose label is 0."""
        return self.fp[..., 0]

    def counts(self, cuts: Any = slice(None)) -> Counts:
        """The counts at `cuts`: any index of the last axis of `tp`."""
        tp, fp = self.tp[..., cuts], self.fp[..., cuts]
        per_cut = (*self.positives.shape, *[1] * (tp.ndim - self.positives.ndim))
        fn, tn = self.positives.reshape(per_cut) - tp, self.negatives.reshape(per_cut) - fp
        return Counts(tp=tp, tn=tn, fp=fp, fn=fn)

    def at(self, thresholds: FloatArray) -> Counts:
        """The counts when the rows at or above each of `thresholds` are called positive."""
        return self.counts(np.searchsorted(self.scores, thresholds, side="left"))


def confusion_counts(labels: ArrayLike, decisions: ArrayLike) -> Counts:
    """Count the four outcomes of labels (N,) against decisions (N,), both 0 or 1."""
    truth = np.asarray(labels) == 1
    decided = np.asarray(decisions) == 1
    cells = [truth & decided, ~truth & ~decided, ~truth & decided, truth & ~decided]
    return Counts(*(int(np.count_nonzero(cell)) for cell in cells))


def all_cuts(labels: ArrayLike, probabilities: ArrayLike) -> Cuts:
    """Every cut of probabilities (N,) against labels (N,), from one sort; rows of equal probability stay together.

    The bits of a float64 in [0, 1] sort like the number and leave the sign bit free, so the probability shifted
    by one bit and its label are one 64-bit key: sorting the keys sorts both, without a gather.

    Raises:
        DataError: as `checked` does.
    """
    truth, p = checked(labels, probabilities)
    keys = (p + 0.0).view(np.uint64)  # adding 0.0 turns -0.0, which has its sign bit set, into 0.0
    keys <<= np.uint64(1)
    keys |= truth
    keys.sort()
    positives_up_to = np.cumsum(keys.astype(np.uint8) & np.uint8(1), dtype=np.int64)
    keys >>= np.uint64(1)
    ties = np.append(np.flatnonzero(keys[1:] != keys[:-1]), keys.size - 1)  # the last row of each
    tp, fp = np.empty(ties.size + 1), np.empty(ties.size + 1)
    tp[0] = positives_up_to[-1]
    tp[1:] = positives_up_to[-1] - positives_up_to[ties]
    fp[0] = keys.size - tp[0]
    fp[1:] = keys.size - 1 - ties - tp[1:]
    return Cuts(scores=keys[ties].view(np.float64), tp=tp, fp=fp)


def checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Labels (N,) as booleans and probabilities (N,) as float64, known to be usable.

    Raises:
        DataError: no rows, other shapes, labels other than 0 and 1, probabilities outside [0, 1] or not finite.
    """
    truth, p = checked_labels(labels), np.asarray(probabilities, dtype=np.float64)
    if p.shape != truth.shape:
        raise DataError(
            f"probabilities must be one number a label; expected shape {truth.shape}, got {p.shape}",
            "give the probability of class 1 of the same rows as the labels",
        )
    if not (p.min() >= 0.0 and p.max() <= 1.0):  # not-a-number fails both comparisons
        bad = int(np.count_nonzero(~((p >= 0.0) & (p <= 1.0))))
        raise DataError(
            f"{bad} of {p.size} probabilities are not numbers in [0, 1]",
            "find the rows whose model output is not finite, or turn logits into probabilities first",
        )
    return truth, p


def checked_labels(labels: ArrayLike) -> BoolArray:
    """Labels (N,) as booleans, known to be one or more zeros and ones; DataError says what else they are."""
    values = np.asarray(labels)
    if values.ndim != 1 or values.size == 0:
        raise DataError(
            f"labels must be a list of at least one 0 or 1; got shape {values.shape}",
            "check that the split holds images",
        )
    truth: BoolArray = values == 1
    if not np.all(truth | (values == 0)):
        strange = np.unique(values[~(truth | (values == 0))])[:3].tolist()
        raise DataError(f"labels must be 0 or 1; found {strange}", "map the class names to 0 and 1 first")
    return truth

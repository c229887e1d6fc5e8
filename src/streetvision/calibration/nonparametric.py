"""Calibrators that follow the data: isotonic regression, its smooth version, and the histogram."""

from typing import Self

import numpy as np
from pydantic import Field, model_validator
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from streetvision.calibration.base import MarginCalibrator
from streetvision.contracts.policies import Artifact, Probability
from streetvision.eval.counts import BoolArray, FloatArray

SMOOTH_KNOTS = 12
"""Most knots of the smooth isotonic curve."""
HISTOGRAM_BINS = 15


class Knots(Artifact):
    """Probabilities at margins; constant beyond the ends."""

    margin: tuple[float, ...] = Field(min_length=1)
    """Strictly rising."""
    probability: tuple[Probability, ...]
    """Never falling, one a margin."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.margin) != len(self.probability):
            raise ValueError(f"{len(self.margin)} margins and {len(self.probability)} probabilities")
        if np.any(np.diff(self.margin) <= 0) or np.any(np.diff(self.probability) < 0):
            raise ValueError("knots must rise")
        return self


class IsotonicCalibrator(MarginCalibrator[Knots]):
    """Isotonic regression of the labels on the margin (Zadrozny and Elkan 2002), linear between its steps.

    Probabilities stay within 1 / (N + 2) of 0 and 1: N rows of one label are no proof of certainty.
    """

    name = "isotonic"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """The corners of the isotonic steps."""
        at, positives, rows = tally(margin, truth)
        edge = 1 / (truth.size + 2)
        fitted = np.clip(isotonic_regression(positives / rows, weights=rows).x, edge, 1 - edge)
        corner = np.ones(at.size, dtype=bool)
        corner[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
        return _knots(at[corner], fitted[corner])

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """Between the corners on straight lines."""
        return np.interp(margin, learned.margin, learned.probability)


class SmoothIsotonicCalibrator(MarginCalibrator[Knots]):
    """A monotone cubic (PCHIP; Fritsch and Carlson 1980) through the middles of the isotonic blocks.

    Blocks narrower than a twelfth of the rows are joined to their neighbour, which holds the number of knots down; each
    block's share is Jeffreys-shrunk, (k + 1/2) / (n + 1). https://doi.org/10.1137/0717021.
    """

    name = "smooth_isotonic"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """The middle and the shrunk share of each block."""
        at, positives, rows = tally(margin, truth)
        blocks = isotonic_regression(positives / rows, weights=rows).blocks[:-1]
        starts = _wide_enough(blocks, np.cumsum(rows), truth.size / SMOOTH_KNOTS)
        held, hits = np.add.reduceat(rows, starts), np.add.reduceat(positives, starts)
        middle = np.add.reduceat(at * (rows / truth.size), starts) / (held / truth.size)
        return _knots(*_distinct(middle, _shrunk(hits, held)))

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """The cubic, flat beyond the outermost knots."""
        if len(learned.margin) == 1:
            return np.full(margin.shape, learned.probability[0])
        inside = np.clip(margin, learned.margin[0], learned.margin[-1])
        return np.asarray(PchipInterpolator(learned.margin, learned.probability)(inside))


class HistogramCalibrator(MarginCalibrator[Knots]):
    """Jeffreys-shrunk shares of 15 bins of equal mass (Zadrozny and Elkan 2001), made monotone; ties share a bin."""

    name = "histogram"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """The lowest margin and the share of each bin."""
        at, positives, rows = tally(margin, truth)
        starts = _wide_enough(np.arange(at.size), np.cumsum(rows), truth.size / HISTOGRAM_BINS)
        return _knots(at[starts], _shrunk(np.add.reduceat(positives, starts), np.add.reduceat(rows, starts)))

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """The share of the bin."""
        bins = np.searchsorted(learned.margin, margin, side="right") - 1
        return np.array(learned.probability)[np.maximum(bins, 0)]


def tally(margin: FloatArray, truth: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct margins (K,), rising, with the positives and the rows at each."""
    at, of_row, rows = np.unique(margin, return_inverse=True, return_counts=True)
    positives = np.bincount(of_row, weights=truth, minlength=at.size)
    return at, positives.astype(np.float64), rows.astype(np.float64)


def _wide_enough(starts: np.ndarray[tuple[int], np.dtype[np.intp]], upto: FloatArray, least: float) -> list[int]:
    """The starts of blocks that hold at least `least` rows each; `upto` (K,) are the rows up to each place."""
    kept, begun = [0], 0.0
    for start in starts[1:].tolist():
        before = float(upto[start - 1])
        if before - begun >= least and float(upto[-1]) - before >= least:
            kept.append(start)
            begun = before
    return kept


def _shrunk(positives: FloatArray, rows: FloatArray) -> FloatArray:
    """Shares under Jeffreys' prior, made monotone again."""
    shares: FloatArray = isotonic_regression((positives + 0.5) / (rows + 1), weights=rows).x
    return shares


def _distinct(margin: FloatArray, probability: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Without knots that rounding has put on the one before."""
    kept = np.append(True, np.diff(margin) > 0)
    return margin[kept], probability[kept]


def _knots(margin: FloatArray, probability: FloatArray) -> Knots:
    rising = np.maximum.accumulate(probability)
    return Knots(margin=tuple(margin.tolist()), probability=tuple(rising.tolist()))

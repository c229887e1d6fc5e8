"""Nonparametric calibrators: isotonic regression, smooth isotonic regression, and histogram binning."""

from typing import Self

import numpy as np
import scipy  # a part of it is loaded at its first use: a prediction needs few of them
from pydantic import Field, model_validator

from streetvision.calibration.base import MarginCalibrator
from streetvision.contracts.policies import Artifact, Probability
from streetvision.eval.counts import BoolArray, FloatArray

SMOOTH_KNOTS = 12
"""Maximum number of knots of the smooth isotonic curve."""
HISTOGRAM_BINS = 15


class Knots(Artifact):
    """A monotone curve: probabilities at margins, constant beyond the ends."""

    margin: tuple[float, ...] = Field(min_length=1)
    """Strictly increasing."""
    probability: tuple[Probability, ...]
    """Nondecreasing, one per margin."""

    @model_validator(mode="after")
    def _check_monotone(self) -> Self:
        if len(self.margin) != len(self.probability):
            raise ValueError(f"{len(self.margin)} margins and {len(self.probability)} probabilities")
        if np.any(np.diff(self.margin) <= 0) or np.any(np.diff(self.probability) < 0):
            raise ValueError("knots must be increasing")
        return self


class IsotonicCalibrator(MarginCalibrator[Knots]):
    """Isotonic regression of the labels on the margin, with linear interpolation between the steps.

    Probabilities are clipped to [1 / (N + 2), 1 - 1 / (N + 2)]: N rows of one label do not justify 0 or 1.

    References:
        Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates.
    """

    name = "isotonic"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """Return both ends of each isotonic step."""
        at, positives, rows = count_by_margin(margin, truth)
        edge = 1 / (truth.size + 2)
        fitted = np.clip(scipy.optimize.isotonic_regression(positives / rows, weights=rows).x, edge, 1 - edge)
        # Points inside a step are redundant: only its two ends are kept.
        step_end = np.ones(at.size, dtype=bool)
        step_end[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
        return _knots(at[step_end], fitted[step_end])

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """Interpolate linearly between the knots."""
        return np.interp(margin, learned.margin, learned.probability)


class SmoothIsotonicCalibrator(MarginCalibrator[Knots]):
    """A monotone cubic (PCHIP) through the mean margins of the isotonic blocks.

    Blocks with fewer than N / SMOOTH_KNOTS rows are merged with adjacent ones. A block with k positives
    among n rows has the probability (k + 1/2) / (n + 1), the posterior mean under Jeffreys' prior.

    References:
        Fritsch and Carlson 1980, https://doi.org/10.1137/0717021.
    """

    name = "smooth_isotonic"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """Return the mean margin and the shrunk share of positives of each block."""
        at, positives, rows = count_by_margin(margin, truth)
        blocks = scipy.optimize.isotonic_regression(positives / rows, weights=rows).blocks[:-1]
        starts = _merge_narrow(blocks, np.cumsum(rows), truth.size / SMOOTH_KNOTS)
        block_rows, block_positives = np.add.reduceat(rows, starts), np.add.reduceat(positives, starts)
        mean_margin = np.add.reduceat(at * (rows / truth.size), starts) / (block_rows / truth.size)
        # Rounding can make two means equal; knots must be strictly increasing.
        distinct = np.append(True, np.diff(mean_margin) > 0)
        return _knots(mean_margin[distinct], _shrunk_shares(block_positives, block_rows)[distinct])

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """Evaluate the cubic, constant beyond the ends."""
        if len(learned.margin) == 1:
            return np.full(margin.shape, learned.probability[0])
        inside = np.clip(margin, learned.margin[0], learned.margin[-1])
        return np.asarray(scipy.interpolate.PchipInterpolator(learned.margin, learned.probability)(inside))


class HistogramCalibrator(MarginCalibrator[Knots]):
    """Histogram binning with 15 bins of equal mass, shrunk by Jeffreys' prior and made monotone. Ties share a bin.

    References:
        Zadrozny and Elkan 2001, Obtaining calibrated probability estimates from decision trees and naive Bayes.
    """

    name = "histogram"
    learned_type = Knots

    def learn(self, margin: FloatArray, truth: BoolArray) -> Knots:
        """Return the lowest margin and the shrunk share of positives of each bin."""
        at, positives, rows = count_by_margin(margin, truth)
        starts = _merge_narrow(np.arange(at.size), np.cumsum(rows), truth.size / HISTOGRAM_BINS)
        shares = _shrunk_shares(np.add.reduceat(positives, starts), np.add.reduceat(rows, starts))
        return _knots(at[starts], shares)

    def apply(self, learned: Knots, margin: FloatArray) -> FloatArray:
        """Look up the bin of each margin."""
        bins = np.searchsorted(learned.margin, margin, side="right") - 1
        return np.array(learned.probability)[np.maximum(bins, 0)]


def count_by_margin(margin: FloatArray, truth: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the K distinct margins in increasing order, and the number of positives and rows at each: three (K,)."""
    at, of_row, rows = np.unique(margin, return_inverse=True, return_counts=True)
    positives = np.bincount(of_row, weights=truth, minlength=at.size)
    return at, positives.astype(np.float64), rows.astype(np.float64)


def _merge_narrow(
    starts: np.ndarray[tuple[int], np.dtype[np.intp]], cumulative_rows: FloatArray, min_rows: float
) -> list[int]:
    """Return the starts of blocks of at least `min_rows` rows; `cumulative_rows` is (K,)."""
    merged, block_begin = [0], 0.0
    for start in starts[1:].tolist():
        rows_before = float(cumulative_rows[start - 1])
        # Both the block that ends here and the remainder must be large enough.
        if rows_before - block_begin >= min_rows and float(cumulative_rows[-1]) - rows_before >= min_rows:
            merged.append(start)
            block_begin = rows_before
    return merged


def _shrunk_shares(positives: FloatArray, rows: FloatArray) -> FloatArray:
    """Return the shares of positives under Jeffreys' prior, made monotone again."""
    shares: FloatArray = scipy.optimize.isotonic_regression((positives + 0.5) / (rows + 1), weights=rows).x
    return shares


def _knots(margin: FloatArray, probability: FloatArray) -> Knots:
    # Rounding can make the solver's output decrease by one unit in the last place.
    monotone = np.maximum.accumulate(probability)
    return Knots(margin=tuple(margin.tolist()), probability=tuple(monotone.tolist()))

"""How far probabilities are from what happens: measures beside the ECE of the metrics table, each blind elsewhere.

Bins of equal mass follow the data, the debiased error takes off what chance alone adds, the smooth error has no bins,
and the decomposition of the Brier score parts miscalibration from what the scores can tell at all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct, idct
from scipy.optimize import brentq, isotonic_regression

from streetvision.eval.counts import FloatArray, checked
from streetvision.eval.metrics import ECE_BINS

SMOOTHING_CELLS = 1024
"""Cells of [0, 1] on which residuals are smoothed; the bandwidth is found to about one of them."""


@dataclass(frozen=True)
class BrierParts:
    """Brier score = miscalibration - discrimination + uncertainty, exactly."""

    miscalibration: float
    """What isotonic recalibration of these rows would gain."""
    discrimination: float
    """What the recalibrated scores gain over the base rate."""
    uncertainty: float
    """The Brier score of the base rate."""


def ece_equal_mass(labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = ECE_BINS) -> float:
    """Expected calibration error over `n_bins` bins that hold about equally many rows; equal probabilities share a bin.

    Raises:
        DataError: as `counts.checked` does, for labels (N,) and probabilities (N,).
    """
    bins = _mass_bins(*checked(labels, probabilities), n_bins)
    return float(np.abs(bins.gaps).sum() / bins.rows.sum())


def ece_debiased(labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = ECE_BINS) -> float:
    """Root of the squared calibration error over bins of equal mass, less what sampling alone adds; 0 where it is less.

    The variance of each bin's share, k (n - k) / (n^2 (n - 1)), is taken off its squared gap. Kumar, Liang and Ma 2019,
    arXiv 1909.10155, section 4. A bin of one row has no variance to take off and is left out. Raises as above.
    """
    bins = _mass_bins(*checked(labels, probabilities), n_bins)
    rows, share = bins.rows, bins.positives / bins.rows
    several = rows > 1
    squared = (bins.gaps / rows) ** 2 - share * (1 - share) / np.maximum(rows - 1, 1)
    return float(np.sqrt(max(0.0, float(np.sum((rows * squared)[several]) / rows.sum()))))


def smooth_ece(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Smooth calibration error: residuals smoothed by a reflected Gaussian whose width equals the error that remains.

    Blasiok and Nakkiran 2023, arXiv 2309.12236: smECE is the width s at which the mean absolute smoothed residual is s.
    On cells of [0, 1] the reflected Gaussian is a product in the cosine basis. Raises as above.
    """
    truth, p = checked(labels, probabilities)
    spectrum = dct(_on_cells(p, truth - p) / p.size, norm="ortho")
    frequency = np.pi * np.arange(SMOOTHING_CELLS)

    def remaining(width: float) -> float:
        return float(np.abs(idct(spectrum * np.exp(-((frequency * width) ** 2) / 2), norm="ortho")).sum())

    narrowest, widest = 1 / SMOOTHING_CELLS, 1.0
    if remaining(narrowest) <= narrowest:
        return remaining(narrowest)
    if remaining(widest) >= widest:  # every row is wrong with certainty
        return widest
    return float(brentq(lambda width: remaining(width) - width, narrowest, widest, xtol=1e-6))


def brier_parts(labels: ArrayLike, probabilities: ArrayLike) -> BrierParts:
    """The Brier score taken apart without bins, by isotonic regression of the labels on the probabilities.

    Dimitriadis, Gneiting and Jordan 2021, https://doi.org/10.1073/pnas.2016191118. Raises as above.
    """
    truth, p = checked(labels, probabilities)
    at, of_row, rows = np.unique(p, return_inverse=True, return_counts=True)
    shares = np.bincount(of_row, weights=truth, minlength=at.size) / rows
    recalibrated = isotonic_regression(shares, weights=rows).x[of_row]
    score, best, base = (float(np.mean((truth - q) ** 2)) for q in (p, recalibrated, truth.mean()))
    return BrierParts(miscalibration=score - best, discrimination=base - best, uncertainty=base)


@dataclass(frozen=True)
class _Bins:
    gaps: FloatArray
    """(B,) positives less summed probability."""
    positives: FloatArray
    rows: FloatArray


def _mass_bins(truth: NDArray[np.bool_], p: FloatArray, n_bins: int) -> _Bins:
    """Bins of at least N / n_bins rows, but for the last; a bin ends where a run of equal probabilities ends."""
    at, of_row, rows = np.unique(p, return_inverse=True, return_counts=True)
    filled = np.cumsum(rows) - rows
    bin_of = np.floor(filled * n_bins / p.size).astype(np.intp)
    rank = np.unique(bin_of, return_inverse=True)[1]
    hits, mass = (np.bincount(of_row, weights=w, minlength=at.size) for w in (truth.astype(np.float64), p))
    positives, expected, held = (_summed(rank, w) for w in (hits, mass, rows))
    return _Bins(gaps=positives - expected, positives=positives, rows=held)


def _summed(bins: NDArray[np.intp], values: NDArray[Any]) -> FloatArray:
    return np.bincount(bins, weights=values).astype(np.float64)


def _on_cells(p: FloatArray, values: FloatArray) -> FloatArray:
    """Values (N,) at p (N,) shared between the two cells whose centres are nearest: (SMOOTHING_CELLS,)."""
    place = np.clip(p * SMOOTHING_CELLS - 0.5, 0.0, SMOOTHING_CELLS - 1.0)
    left = np.minimum(place.astype(np.intp), SMOOTHING_CELLS - 2)
    share = place - left
    cells = np.bincount(left, weights=values * (1 - share), minlength=SMOOTHING_CELLS)
    return np.asarray(cells + np.bincount(left + 1, weights=values * share, minlength=SMOOTHING_CELLS))

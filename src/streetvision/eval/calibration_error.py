"""Calibration errors that complement the ECE of the metrics table.

Bins of equal mass follow the data. The debiased error subtracts what sampling adds. The smooth error needs no bins. The
decomposition of the Brier score separates miscalibration from discrimination.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.optimize import brentq, isotonic_regression

from streetvision.eval.counts import FloatArray
from streetvision.eval.metrics import ECE_BINS
from streetvision.eval.predictions import Predictions

SMOOTHING_CELLS = 1024
"""Cells of [0, 1] on which residuals are smoothed; the bandwidth is accurate to about one cell."""


@dataclass(frozen=True)
class BrierParts:
    """Brier score = miscalibration - discrimination + uncertainty, exactly."""

    miscalibration: float
    """The gain from isotonic recalibration of these rows."""
    discrimination: float
    """The gain of the recalibrated scores over the base rate."""
    uncertainty: float
    """The Brier score of the base rate."""


def ece_equal_mass(predictions: Predictions, *, n_bins: int = ECE_BINS) -> float:
    """Expected calibration error over `n_bins` bins of about equal size; equal probabilities share a bin."""
    bins = _mass_bins(predictions, n_bins)
    return float(np.abs(bins.gaps).sum() / bins.rows.sum())


def ece_debiased(predictions: Predictions, *, n_bins: int = ECE_BINS) -> float:
    """Root of the squared calibration error over bins of equal mass, minus the part due to sampling; at least 0.

    The sampling variance of each bin's share, k (n - k) / (n^2 (n - 1)), is subtracted from its squared gap. Bins of
    one row have no variance estimate and are ignored.

    References:
        Kumar, Liang and Ma 2019, arXiv 1909.10155, section 4.
    """
    bins = _mass_bins(predictions, n_bins)
    rows, share = bins.rows, bins.positives / bins.rows
    several = rows > 1
    squared = (bins.gaps / rows) ** 2 - share * (1 - share) / np.maximum(rows - 1, 1)
    return float(np.sqrt(max(0.0, float(np.sum((rows * squared)[several]) / rows.sum()))))


def smooth_ece(predictions: Predictions) -> float:
    """Smooth calibration error: residuals smoothed by a reflected Gaussian whose width equals the remaining error.

    smECE is the width s at which the mean absolute smoothed residual is s.

    References:
        Blasiok and Nakkiran 2023, arXiv 2309.12236.
    """
    labels, p = predictions.labels, predictions.probabilities
    # In the cosine basis, convolution with a reflected Gaussian is a product.
    spectrum = dct(_on_cells(p, labels - p) / p.size, norm="ortho")
    frequency = np.pi * np.arange(SMOOTHING_CELLS)

    def remaining(width: float) -> float:
        return float(np.abs(idct(spectrum * np.exp(-((frequency * width) ** 2) / 2), norm="ortho")).sum())

    narrowest, widest = 1 / SMOOTHING_CELLS, 1.0
    if remaining(narrowest) <= narrowest:
        return remaining(narrowest)
    if remaining(widest) >= widest:  # every row is wrong with certainty
        return widest
    return float(brentq(lambda width: remaining(width) - width, narrowest, widest, xtol=1e-6))


def brier_parts(predictions: Predictions) -> BrierParts:
    """The decomposition of the Brier score without bins, by isotonic regression of the labels on the probabilities.

    References:
        Dimitriadis, Gneiting and Jordan 2021, https://doi.org/10.1073/pnas.2016191118.
    """
    labels, p = predictions.labels, predictions.probabilities
    values, value_of_row, rows = np.unique(p, return_inverse=True, return_counts=True)
    shares = np.bincount(value_of_row, weights=labels, minlength=values.size) / rows
    recalibrated = isotonic_regression(shares, weights=rows).x[value_of_row]
    score, best, base = (float(np.mean((labels - q) ** 2)) for q in (p, recalibrated, labels.mean()))
    return BrierParts(miscalibration=score - best, discrimination=base - best, uncertainty=base)


@dataclass(frozen=True)
class _Bins:
    gaps: FloatArray
    """(B,) positives minus summed probability."""
    positives: FloatArray
    rows: FloatArray


def _mass_bins(predictions: Predictions, n_bins: int) -> _Bins:
    """Bins of at least N / n_bins rows, except the last; a bin ends where a run of equal probabilities ends."""
    labels, p = predictions.labels, predictions.probabilities
    values, value_of_row, rows = np.unique(p, return_inverse=True, return_counts=True)
    rows_before = np.cumsum(rows) - rows
    bin_number = np.floor(rows_before * n_bins / p.size).astype(np.intp)
    # A long run of equal probabilities skips bin numbers: make them consecutive.
    bin_of_value = np.unique(bin_number, return_inverse=True)[1]
    hits, mass = (np.bincount(value_of_row, weights=w, minlength=values.size) for w in (labels.astype(np.float64), p))
    positives, expected, size = (
        np.bincount(bin_of_value, weights=weights).astype(np.float64) for weights in (hits, mass, rows)
    )
    return _Bins(gaps=positives - expected, positives=positives, rows=size)


def _on_cells(p: FloatArray, values: NDArray[np.floating]) -> FloatArray:
    """Values (N,) at p (N,), each shared between the two cells with the nearest centers: (SMOOTHING_CELLS,)."""
    position = np.clip(p * SMOOTHING_CELLS - 0.5, 0.0, SMOOTHING_CELLS - 1.0)
    left = np.minimum(position.astype(np.intp), SMOOTHING_CELLS - 2)
    share = position - left
    cells = np.bincount(left, weights=values * (1 - share), minlength=SMOOTHING_CELLS)
    return np.asarray(cells + np.bincount(left + 1, weights=values * share, minlength=SMOOTHING_CELLS))

"""Calibration of probabilities by bins, and the calibration error to expect from perfectly calibrated ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from streetvision.eval.counts import FloatArray
from streetvision.eval.metrics import ECE_BINS, bin_index
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import DEFAULT_RESAMPLING, Resampling

LABELS_PER_CHUNK = 1 << 22
"""Simulated labels in memory at a time."""


@dataclass(frozen=True)
class ReliabilityBins:
    """The non-empty bins of [0, 1] in ascending order; arrays of shape (B,)."""

    probability: FloatArray
    """Mean probability of class 1."""
    frequency: FloatArray
    """Share of rows with label 1."""
    count: NDArray[np.int64]
    """Rows in the bin."""
    low: FloatArray
    """Lower end of the Wilson interval of the frequency."""
    high: FloatArray
    """Upper end of the Wilson interval of the frequency."""


def reliability_bins(predictions: Predictions, *, n_bins: int = ECE_BINS, level: float = 0.95) -> ReliabilityBins:
    """Mean probability and observed frequency in `n_bins` bins of equal width.

    The intervals are based on the number of independent units in a bin, not on its rows.
    """
    p, units = predictions.probabilities, predictions.units
    bins = bin_index(p, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    filled = count > 0
    frequency = np.bincount(bins, weights=predictions.labels, minlength=n_bins)[filled] / count[filled]
    # Count each unit once per bin.
    trials = np.bincount(np.unique(bins * units.count + units.of_row) // units.count, minlength=n_bins)[filled]
    low, high = wilson_interval(frequency * trials, trials, level=level)
    return ReliabilityBins(
        probability=np.bincount(bins, weights=p, minlength=n_bins)[filled] / count[filled],
        frequency=frequency,
        count=count[filled],
        low=low,
        high=high,
    )


def wilson_interval(successes: ArrayLike, trials: ArrayLike, *, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Interval of a proportion, elementwise; (0, 1) without trials.

    References:
        Wilson 1927, https://doi.org/10.2307/2276774.
    """
    hits, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    z = ndtri((1 + level) / 2)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(hits * (n - hits) / np.maximum(n, 1) + z**2 / 4) / (n + z**2)
    # The ends are exact at 0 and n, where rounding would leave them slightly off.
    return np.where(hits == 0, 0.0, middle - half), np.where(hits == n, 1.0, middle + half)


def ece_band(predictions: Predictions, resampling: Resampling = DEFAULT_RESAMPLING) -> tuple[float, float]:
    """The range of ECE that the probabilities would show if they were perfectly calibrated.

    Labels are simulated from the probabilities; the central `level` of the resulting ECEs is returned. An ECE within
    the band is no evidence of miscalibration. The rows of a group share one random number, so that the frames of one
    track agree.

    References:
        Broecker and Smith 2007, https://doi.org/10.1175/WAF993.1, for reliability diagrams.
    """
    p, units = predictions.probabilities, predictions.units
    rng, n_draws = np.random.default_rng(resampling.seed), resampling.n_resamples
    bins = bin_index(p)
    expected = np.bincount(bins, weights=p, minlength=ECE_BINS)
    if units.grouped:
        draws = _grouped_positives(p, bins, units.of_row, rng, n_draws)
    else:
        # All rows of a bin get its mean probability; the variance is a few percent too large at most.
        count = np.bincount(bins, minlength=ECE_BINS)
        mean = np.clip(expected / np.maximum(count, 1), 0, 1)
        draws = iter([rng.binomial(count, mean, size=(n_draws, ECE_BINS))])
    errors = np.concatenate([np.abs(positives - expected).sum(axis=1) / p.size for positives in draws])
    low, high = np.quantile(errors, [(1 - resampling.level) / 2, (1 + resampling.level) / 2])
    return float(low), float(high)


def _grouped_positives(
    p: FloatArray, bins: NDArray[np.intp], unit_of_row: NDArray[np.int64], rng: np.random.Generator, n_draws: int
) -> Iterator[NDArray[Any]]:
    """Simulated positives (C, B) in every bin, with one random number for all rows of a unit."""
    columns = (bins[:, None] == np.arange(ECE_BINS)).astype(np.float64)
    chunk, n_units = max(1, LABELS_PER_CHUNK // p.size), int(unit_of_row.max()) + 1
    for start in range(0, n_draws, chunk):
        uniform = rng.random((min(chunk, n_draws - start), n_units))
        yield (uniform[:, unit_of_row] < p) @ columns

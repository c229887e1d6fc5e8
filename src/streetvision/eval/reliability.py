"""Can the probabilities be believed: frequencies by bin, and what perfect probabilities would show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from streetvision.eval.counts import FloatArray, checked
from streetvision.eval.metrics import ECE_BINS, bin_index

DRAWN_AT_ONCE = 1 << 22
"""Simulated labels held in memory at a time."""


@dataclass(frozen=True)
class ReliabilityBins:
    """The bins of [0, 1] that hold rows, in rising order; arrays of shape (B,)."""

    probability: FloatArray
    """Mean probability of class 1."""
    frequency: FloatArray
    """Share of rows whose label is 1."""
    count: NDArray[np.int64]
    """Rows in the bin."""
    low: FloatArray
    """Lower end of the Wilson interval of the frequency."""
    high: FloatArray
    """Upper end of the Wilson interval of the frequency."""


def reliability_bins(
    labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = ECE_BINS, level: float = 0.95
) -> ReliabilityBins:
    """Mean probability against observed frequency over `n_bins` equal bins of labels (N,) and probabilities (N,).

    Raises:
        DataError: empty or mismatched arrays, labels other than 0 and 1, probabilities outside [0, 1].
    """
    truth, p = checked(labels, probabilities)
    bins = bin_index(p, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    held = count > 0
    positives = np.bincount(bins, weights=truth, minlength=n_bins)[held]
    low, high = wilson_interval(positives, count[held], level=level)
    return ReliabilityBins(
        probability=np.bincount(bins, weights=p, minlength=n_bins)[held] / count[held],
        frequency=positives / count[held],
        count=count[held],
        low=low,
        high=high,
    )


def wilson_interval(successes: ArrayLike, trials: ArrayLike, *, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Interval of a proportion, elementwise: (0, 1) without trials. Wilson 1927, https://doi.org/10.2307/2276774."""
    hits, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    z = ndtri((1 + level) / 2)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(hits * (n - hits) / np.maximum(n, 1) + z**2 / 4) / (n + z**2)
    return np.where(hits == 0, 0.0, middle - half), np.where(hits == n, 1.0, middle + half)


def ece_band(
    probabilities: ArrayLike, *, n_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The range of ECE that probabilities (N,) would show if they were exactly right.

    Labels are drawn from the probabilities themselves `n_draws` times; the central `level` of the resulting ECEs is
    returned. An ECE inside the band is no evidence of miscalibration. Broecker and Smith 2007,
    https://doi.org/10.1175/WAF993.1, draw the same for reliability diagrams.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    rng = np.random.default_rng(seed)
    columns = (bin_index(p)[:, None] == np.arange(ECE_BINS)).astype(np.float64)
    expected = p @ columns
    at_once = max(1, DRAWN_AT_ONCE // p.size)
    errors = []
    for start in range(0, n_draws, at_once):
        draws = rng.random((min(at_once, n_draws - start), p.size)) < p
        errors.append(np.abs(draws @ columns - expected).sum(axis=1) / p.size)
    low, high = np.quantile(np.concatenate(errors), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

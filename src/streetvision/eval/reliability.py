"""Can the probabilities be believed: frequencies by bin, and what perfect probabilities would show."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from streetvision.eval.counts import FloatArray, checked
from streetvision.eval.metrics import ECE_BINS, bin_index
from streetvision.eval.resampling import Resampling, ResamplingUnits, units_of

ALONE = Resampling()
"""A thousand draws, a central range of 95 %, rows that stand alone."""
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
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    n_bins: int = ECE_BINS,
    level: float = 0.95,
) -> ReliabilityBins:
    """Mean probability against observed frequency over `n_bins` equal bins of labels (N,) and probabilities (N,).

    With `groups` (N,), an interval counts the groups in a bin, not their rows.

    Raises:
        DataError: empty or mismatched arrays, labels other than 0 and 1, probabilities outside [0, 1].
    """
    truth, p = checked(labels, probabilities)
    bins, units = bin_index(p, n_bins), units_of(groups, truth.size)
    count = np.bincount(bins, minlength=n_bins)
    held = count > 0
    frequency = np.bincount(bins, weights=truth, minlength=n_bins)[held] / count[held]
    trials = np.bincount(np.unique(bins * units.count + units.of_row) // units.count, minlength=n_bins)[held]
    low, high = wilson_interval(frequency * trials, trials, level=level)
    return ReliabilityBins(
        probability=np.bincount(bins, weights=p, minlength=n_bins)[held] / count[held],
        frequency=frequency,
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


def ece_band(probabilities: ArrayLike, how: Resampling = ALONE) -> tuple[float, float]:
    """The range of ECE that probabilities (N,) would show if they were exactly right.

    Labels are drawn from the probabilities themselves; the central `how.level` of the resulting ECEs is returned. An
    ECE inside the band is no evidence of miscalibration. Broecker and Smith 2007, https://doi.org/10.1175/WAF993.1,
    draw the same for reliability diagrams. The rows of a group share their luck: 30 frames of one track come true
    together, or not at all.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    units, rng = how.units(p.size), np.random.default_rng(how.seed)
    bins = bin_index(p)
    expected = np.bincount(bins, weights=p, minlength=ECE_BINS)
    if units.grouped:
        draws = _grouped_positives(p, bins, units, rng, how.n_resamples)
    else:  # the rows of a bin at their mean probability: its variance is a few per cent too large at most
        count = np.bincount(bins, minlength=ECE_BINS)
        mean = np.clip(expected / np.maximum(count, 1), 0, 1)
        draws = iter([rng.binomial(count, mean, size=(how.n_resamples, ECE_BINS))])
    errors = np.concatenate([np.abs(positives - expected).sum(axis=1) / p.size for positives in draws])
    low, high = np.quantile(errors, [(1 - how.level) / 2, (1 + how.level) / 2])
    return float(low), float(high)


def _grouped_positives(
    p: FloatArray, bins: NDArray[np.intp], units: ResamplingUnits, rng: np.random.Generator, n_draws: int
) -> Iterator[NDArray[Any]]:
    """Positives (C, B) in every bin, when one number drawn for a unit decides all its rows."""
    columns = (bins[:, None] == np.arange(ECE_BINS)).astype(np.float64)
    at_once = max(1, DRAWN_AT_ONCE // p.size)
    for start in range(0, n_draws, at_once):
        luck = rng.random((min(at_once, n_draws - start), units.count))
        yield (luck[:, units.of_row] < p) @ columns

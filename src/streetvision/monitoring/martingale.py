"""Test of exchangeability for a stream of values: online conformal p-values, and a martingale that bets against them.

If the values are exchangeable, the smoothed rank of each among all up to it is uniform on [0, 1], and the ranks are
independent (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2nd edition, 2022, theorem 11.1). A
product of bets on such values is a martingale, which ever exceeds 1/alpha with probability at most alpha (Ville's
inequality). The ranks include the earlier values of the stream: ranks in a fixed sample alone would not be independent,
and would raise false alarms as the stream grows.

The bets are the simple jumper of Vovk et al. (Retrain or not retrain, COPA 2021), which moves a share of its capital
between bets after each step, with more kinds of bets.

Shapes: N values of a stream, G bins, E bets, R rates.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BinArray = NDArray[np.int64]

BINS = 4096
"""Values are compared on a grid of this size. A bin is a function of its value alone, so exchangeability is kept."""
RANK_BLOCK = 256
"""Values whose ranks are computed together."""
BET_BLOCK = 32
"""Values after which capital moves between bets."""
RATES = np.array([1e-4, 1e-3, 1e-2])
"""Share of the capital that moves after each value; the martingale is the mean over the rates."""
TILTS = (-1.9, -1.0, 1.0, 1.9)
SMALLEST_P = 1e-6
"""Bound of p-values, at which all densities are finite."""
_EARLIER = np.tri(RANK_BLOCK, k=-1, dtype=np.bool_)
_N_BETS = len(TILTS) + 9
_PRIOR = np.array([0.5, *[0.5 / _N_BETS] * _N_BETS])
"""(E,) initial capital: half of it does not bet."""


def bin_values(values: FloatArray, low: float, high: float) -> BinArray:
    """Return the bin of each value (N,) on an even grid; values outside [low, high] are in the first or last bin."""
    return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)


def bets(p: FloatArray) -> FloatArray:
    """Return the densities (N, E) of all bets at p-values (N,); each integrates to 1 over [0, 1]."""
    p = np.clip(p, SMALLEST_P, 1 - SMALLEST_P)
    edges = 12 * (p - 0.5) ** 2
    columns = [np.ones_like(p), *(1 + tilt * (p - 0.5) for tilt in TILTS)]
    for side in (p, 1 - p):
        root = 1 / np.sqrt(np.sqrt(side))  # side ** -0.25
        columns += [0.75 * root, 0.5 * root * root, 0.25 * root * root * root]  # power * side ** (power - 1)
    return np.stack([*columns, edges, (1 + edges) / 2, (3 - edges) / 2], axis=1)


@dataclass
class ExchangeabilityTest:
    """The state of a test; `update` continues it."""

    seed: int
    """For ties. The result does not depend on how the stream is divided into calls."""
    counts: BinArray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    """(G,) number of values by bin, with those of the reference."""
    steps: int = 0
    """Number of values of the stream."""
    log_scale: FloatArray = field(default_factory=lambda: np.zeros(len(RATES)))
    """(R,) log of the capital by rate."""
    shares: FloatArray = field(default_factory=lambda: np.tile(_PRIOR, (len(RATES), 1)))
    """(R, E) share of each bet in the capital."""
    log_max: float = 0.0
    """Largest log of the martingale so far."""

    @property
    def log_value(self) -> float:
        """Natural logarithm of the martingale."""
        return float(np.logaddexp.reduce(self.log_scale) - np.log(len(RATES)))

    def update(self, bins: BinArray) -> FloatArray:
        """Take the next values of the stream.

        Args:
            bins: (N,) from `bin_values`.

        Returns:
            (N,) natural logarithm of the martingale after each value.
        """
        path = np.empty(len(bins))
        start = 0
        while start < len(bins):
            # Blocks are aligned to the stream, and not to the calls.
            stop = start + min(len(bins) - start, RANK_BLOCK - self.steps % RANK_BLOCK)
            p = self._p_values(bins[start:stop])
            path[start:stop] = self._bet(p)
            start = stop
        if len(path):
            self.log_max = max(self.log_max, float(path.max()))
        return path

    def _p_values(self, bins: BinArray) -> FloatArray:
        """Smoothed ranks of the values of one block: high values have small p-values."""
        block, offset = divmod(self.steps, RANK_BLOCK)
        uniform = np.random.default_rng([self.seed, block]).random(RANK_BLOCK)[offset : offset + len(bins)]
        at_most = np.cumsum(self.counts)
        greater, equal = _earlier_values(bins)
        greater += at_most[-1] - at_most[bins]
        equal += self.counts[bins]
        total = at_most[-1] + np.arange(len(bins))
        self.counts += np.bincount(bins, minlength=BINS)
        p: FloatArray = (greater + uniform * (equal + 1)) / (total + 1)
        return p

    def _bet(self, p: FloatArray) -> FloatArray:
        """Bet on the p-values of one block; return the log of the martingale after each."""
        densities, log_capital, start = bets(p), np.empty((len(p), len(RATES))), 0
        while start < len(p):
            stop = start + min(len(p) - start, BET_BLOCK - self.steps % BET_BLOCK)
            growth = np.cumprod(densities[start:stop], axis=0)
            capital = growth @ self.shares.T  # (n, R), relative to the scale
            log_capital[start:stop] = self.log_scale + np.log(capital)
            self.shares = self.shares * growth[-1] / capital[-1][:, None]
            self.log_scale = log_capital[stop - 1].copy()
            self.steps += stop - start
            if self.steps % BET_BLOCK == 0:
                move = (1 - (1 - RATES) ** BET_BLOCK)[:, None]
                self.shares = (1 - move) * self.shares + move * _PRIOR
            start = stop
        path: FloatArray = np.logaddexp.reduce(log_capital, axis=1) - np.log(len(RATES))
        return path


def _earlier_values(bins: BinArray) -> tuple[BinArray, BinArray]:
    """For each value of a block, the number of earlier ones that are greater, and that are equal."""
    small = bins.astype(np.int16)
    earlier = _EARLIER[: len(bins), : len(bins)]
    of_pairs = (small[None] > small[:, None]) & earlier, (small[None] == small[:, None]) & earlier
    greater, equal = (pairs.view(np.uint8).sum(axis=1, dtype=np.uint16).astype(np.int64) for pairs in of_pairs)
    return greater, equal

"""Select the closest pairs of each image from a stream of pairs, in memory proportional to the number of images."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streetvision.data.grouping.hamming import Positions

Ranks: TypeAlias = npt.NDArray[np.uint64]

MIN_PENDING = 2**20
"""Number of pairs that are collected, at least, before those that are not close enough are removed."""


class ClosestPairs:
    """The pairs that are among the `limit` closest of one of their two images; all pairs if no image has more."""

    def __init__(self, n: int, *, limit: int, rank: Callable[[Positions], Ranks]) -> None:
        """Start without pairs.

        Args:
            n: number of images.
            limit: number of pairs per image. Each image may be in more, which are close for the other image.
            rank: the rank (P,) of each of the pairs (P, 2); the lowest is the closest.
        """
        self._n, self._limit, self._rank = max(n, 1), limit, rank
        self._keys = np.empty(0, dtype=np.int64)  # first * n + second
        self._pending: list[Positions] = []
        self._n_pending = 0
        # Rank of the last pair that an image keeps. Other pairs must be closer for one of their images.
        self._last = np.full(n, np.iinfo(np.uint64).max, dtype=np.uint64)

    def add(self, pairs: Positions) -> None:
        """Add pairs (P, 2) of positions i < j. The same pair may be added again."""
        close = self._rank(pairs) < self._last[pairs].max(axis=1)
        self._pending.append(pairs[close, 0] * self._n + pairs[close, 1])
        self._n_pending += len(self._pending[-1])
        if self._n_pending > max(MIN_PENDING, self._limit * self._n):
            self._select()

    def pairs(self) -> Positions:
        """Return the selected pairs (P, 2), sorted, each pair once."""
        self._select()
        return self._positions(self._keys)

    def _select(self) -> None:
        keys = np.unique(np.concatenate([self._keys, *self._pending]))
        pairs = self._positions(keys)
        images, ranks = pairs.T.ravel(), np.tile(self._rank(pairs), 2)
        order = np.lexsort((ranks, images))
        images = images[order]
        number = np.arange(len(order)) - np.searchsorted(images, images)  # of the pair among those of its image
        selected = np.zeros(len(keys), dtype=np.bool_)
        selected[order[number < self._limit] % len(keys)] = True
        last = number == self._limit - 1
        self._last[images[last]] = ranks[order[last]]
        self._keys, self._pending, self._n_pending = keys[selected], [], 0

    def _positions(self, keys: Positions) -> Positions:
        return np.stack(np.divmod(keys, self._n), axis=1)

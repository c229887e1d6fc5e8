"""Random numbers and colours of the procedural scenes."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Colour = tuple[float, float, float]
"""Red, green, blue in grey levels 0 to 255; or a factor for each."""


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0 to 1) of `second` stirred in."""
    keep = 1.0 - share
    return (
        first[0] * keep + second[0] * share,
        first[1] * keep + second[1] * share,
        first[2] * keep + second[2] * share,
    )


def scaled(colour: Colour, factor: float) -> Colour:
    """`colour` made darker (factor below 1) or brighter."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def whole(colour: Colour) -> tuple[int, int, int]:
    """`colour` in whole grey levels, at most 255."""
    return (min(255, int(colour[0])), min(255, int(colour[1])), min(255, int(colour[2])))


class Dice:
    """Random numbers of one stream; the same key gives the same numbers in any process.

    They are drawn in blocks, since a scene needs about a thousand and one call of a generator costs more than the draw.
    """

    _BLOCK = 512

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)
        self._block: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(self._BLOCK).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def log_between(self, low: float, high: float) -> float:
        """A number in [low, high) whose logarithm is uniform; `low` above 0."""
        return low * float((high / low) ** self.unit())

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int((high - low + 1) * self.unit())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def side(self) -> int:
        """-1 or 1."""
        return -1 if self.unit() < 0.5 else 1

    def pick(self, choices: Sequence[Item]) -> Item:
        """One of `choices`, all equally likely."""
        return choices[int(len(choices) * self.unit())]

    def near(self, colour: Colour, spread: float) -> Colour:
        """A colour about `colour`: each channel moves by up to `spread` grey levels."""
        return (
            colour[0] + self.between(-spread, spread),
            colour[1] + self.between(-spread, spread),
            colour[2] + self.between(-spread, spread),
        )

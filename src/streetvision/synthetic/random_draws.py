"""Random numbers and colors of the drawn scenes."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Color = tuple[float, float, float]
"""Red, green, blue: values from 0 to 255, or one factor per channel."""


def mix(first: Color, second: Color, share: float) -> Color:
    """Blend two colors: 1 - share of `first` and `share` (0 to 1) of `second`."""
    keep = 1.0 - share
    return (
        first[0] * keep + second[0] * share,
        first[1] * keep + second[1] * share,
        first[2] * keep + second[2] * share,
    )


def scaled(color: Color, factor: float) -> Color:
    """Multiply a color: below 1 is darker, above 1 is brighter."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def as_uint8(color: Color) -> tuple[int, int, int]:
    """Truncate a color to integers, at most 255."""
    return (min(255, int(color[0])), min(255, int(color[1])), min(255, int(color[2])))


class Dice:
    """A stream of random numbers; the same key gives the same numbers in any process.

    Numbers are drawn in blocks. A scene needs about a thousand of them, and the call of a generator costs more than the
    draw itself.
    """

    _BLOCK = 512

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)
        self._block: list[float] = []

    def unit(self) -> float:
        """Uniform number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(self._BLOCK).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform number in [low, high)."""
        return low + (high - low) * self.unit()

    def log_between(self, low: float, high: float) -> float:
        """Number in [low, high) whose logarithm is uniform; `low` > 0."""
        return low * float((high / low) ** self.unit())

    def integer(self, low: int, high: int) -> int:
        """Uniform integer from `low` to `high`, both inclusive."""
        return low + int((high - low + 1) * self.unit())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def side(self) -> int:
        """-1 or 1, equally likely."""
        return -1 if self.unit() < 0.5 else 1

    def pick(self, choices: Sequence[Item]) -> Item:
        """Element of `choices`, all equally likely."""
        return choices[int(len(choices) * self.unit())]

    def near(self, color: Color, spread: float) -> Color:
        """Random color near `color`: each channel changes by at most `spread`."""
        return (
            color[0] + self.between(-spread, spread),
            color[1] + self.between(-spread, spread),
            color[2] + self.between(-spread, spread),
        )

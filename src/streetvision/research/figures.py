"""A measured figure beside the one it is judged against, and how two functions are timed fairly."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 5


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it is compared with."""

    name: str
    value: float
    """Median over the repeats."""
    beside: str
    """What `beside_value` is the figure of."""
    beside_value: float
    """Median over the same repeats, taken in turn."""
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """This figure over the one beside it."""
        return self.value / self.beside_value


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds of two functions that run in turn, so that a drifting machine slows both; one warm-up each."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, times in zip((ours, theirs), taken, strict=True):
            started = time.perf_counter()
            function()
            if repeat:
                times.append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])

"""A measured figure with its baseline, and interleaved timing of functions."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

REPEATS = 5


@dataclass(frozen=True)
class Curve:
    """Seconds at growing sizes of one thing."""

    of: str
    """What grows."""
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    """Medians."""

    @property
    def exponent(self) -> float:
        """Exponent of the fitted power law, by least squares of the logarithms: 1 is linear."""
        return statistics.linear_regression([log(n) for n in self.sizes], [log(s) for s in self.seconds]).slope


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it is compared with."""

    name: str
    value: float
    """Median over the repeats."""
    baseline: str
    """What `baseline_value` is the figure of."""
    baseline_value: float
    """Median over the same repeats, interleaved."""
    unit: str = "s"
    curve: Curve | None = None
    """The measurements behind the value, for a cost that grows."""

    @property
    def ratio(self) -> float:
        """Value divided by baseline value."""
        return self.value / self.baseline_value


def interleaved_median(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = REPEATS
) -> tuple[float, float]:
    """Median seconds of two functions interleaved, so that other load on the machine slows both; one warm-up each."""
    first, second = interleaved_medians((ours, theirs), repeats=repeats)
    return first, second


def interleaved_medians(
    functions: Sequence[Callable[[], object]], *, repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each function by `clock`, interleaved; one warm-up each."""
    taken: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, times in zip(functions, taken, strict=True):
            started = clock()
            function()
            if repeat:
                times.append(clock() - started)
    return [statistics.median(times) for times in taken]

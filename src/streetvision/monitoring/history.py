"""The course of a stream in at most MAX_WINDOWS windows of equal width, which doubles when they are full.

Shapes: W windows, G bins of the probability, Q quality values, C components, T tests.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.monitor_status import TestName
from streetvision.data.quality import ImageQuality
from streetvision.monitoring.prevalence import BINS

FloatArray = NDArray[np.float64]

MAX_WINDOWS = 64
FIRST_WIDTH = 128
RECENT = 2000
"""Units that the recent part has, if the stream has as many: the last windows that have them together."""
TESTS: tuple[TestName, ...] = ("images", "quality", "scores")


@dataclass
class History:
    """Sums by window. The last window may be incomplete."""

    width: int
    """Units of a complete window."""
    count: FloatArray
    """(W,) units."""
    probability: FloatArray
    """(W, G) units by bin of the calibrated probability."""
    quality: FloatArray
    """(W, 3, Q): number of values, sum, sum of squares."""
    components: FloatArray
    """(W, 2, C): sum, sum of squares."""
    martingale: FloatArray
    """(W, T) natural logarithm at the end of the window."""
    time: FloatArray
    """(W, 2) first and last time; NaN: unknown."""

    @classmethod
    def empty(cls, components: int) -> "History":
        """Return a history without units."""
        shapes = ((BINS,), (3, len(ImageQuality._fields)), (2, components), (len(TESTS),), (2,))
        parts = [np.zeros((0, *shape)) for shape in shapes]
        return cls(FIRST_WIDTH, np.zeros(0), *parts)

    def add(
        self,
        bins: NDArray[np.int64],
        quality: FloatArray,
        components: NDArray[np.float32],
        martingale: FloatArray,
        time: FloatArray,
    ) -> None:
        """Add N units: bins (N,), quality (N, Q), components (N, C), martingale (N, T) and time (N,)."""
        start = 0
        while start < len(bins):
            if not len(self.count) or self.count[-1] >= self.width:
                self._open_window()
            stop = start + int(min(len(bins) - start, self.width - self.count[-1]))
            part, values = slice(start, stop), quality[start:stop]
            known = ~np.isnan(values)
            filled = np.where(known, values, 0)
            self.count[-1] += stop - start
            self.probability[-1] += np.bincount(bins[part], minlength=BINS)
            self.quality[-1] += np.stack([known.sum(axis=0), filled.sum(axis=0), (filled**2).sum(axis=0)])
            chunk = components[part].astype(np.float64)
            self.components[-1] += np.stack([chunk.sum(axis=0), (chunk**2).sum(axis=0)])
            self.martingale[-1] = martingale[stop - 1]
            times = time[part][~np.isnan(time[part])]
            if len(times):
                self.time[-1] = np.fmin(self.time[-1, 0], times.min()), np.fmax(self.time[-1, 1], times.max())
            start = stop

    def _open_window(self) -> None:
        if len(self.count) == MAX_WINDOWS:
            self.width *= 2
            for name in ("count", "probability", "quality", "components"):
                values = getattr(self, name)
                setattr(self, name, values[::2] + values[1::2])
            self.martingale = self.martingale[1::2]
            self.time = np.stack(
                [np.fmin(self.time[::2, 0], self.time[1::2, 0]), np.fmax(self.time[::2, 1], self.time[1::2, 1])], axis=1
            )
        for name in ("count", "probability", "quality", "components", "martingale", "time"):
            values = getattr(self, name)
            new = np.full((1, *values.shape[1:]), np.nan if name == "time" else 0.0)
            setattr(self, name, np.concatenate([values, new]))

    def recent(self) -> slice:
        """Return the windows of the recent part."""
        from_the_end = np.cumsum(self.count[::-1])
        return slice(max(0, len(self.count) - 1 - int(np.searchsorted(from_the_end, RECENT))), len(self.count))

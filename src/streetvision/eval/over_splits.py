"""The interval of a mean difference over several random splits of one data set, which share most of their images."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from streetvision.eval.bootstrap import Interval
from streetvision.eval.intervals import NO_SPREAD


def corrected_t_interval(differences: Sequence[float], *, tested: float, level: float) -> Interval:
    """The mean of differences (J,), one a split, with the corrected resampled t interval.

    `tested` is the number of images judged over the number of the others in a split. Splits of one data set overlap, so
    their differences agree more than independent ones would: the variance of the mean is (1 / J + tested) times that
    of one difference, not 1 / J. Nadeau and Bengio 2003, https://doi.org/10.1023/A:1024068626366.

    The ends are nan (`unseen`) for one split, or where all splits gave the same difference: that shows no spread.
    """
    values = np.asarray(differences, dtype=np.float64)
    estimate = float(values.mean())
    if values.size < 2 or np.ptp(values) <= NO_SPREAD:
        return Interval(estimate, np.nan, np.nan, "unseen", values.size, values.size)
    error = values.std(ddof=1) * np.sqrt(1 / values.size + tested)
    half = float(student.ppf((1 + level) / 2, values.size - 1) * error)
    return Interval(estimate, estimate - half, estimate + half, "corrected_t", values.size, values.size)

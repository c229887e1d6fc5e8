"""Formulas of confidence intervals, from an estimate and its bootstrap replicates.

If every resample gives the same value (no miss among all positives, a perfect ranking), the bootstrap interval is a
single point, although other data could give another value. For these cases the functions named `bound_*` return the
range that the independent units observed so far do not exclude.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import t as student_t

from streetvision.eval.counts import Counts, FloatArray, ThresholdCounts
from streetvision.eval.metrics import Basis, Metric, mean_of_terms

Bounds = tuple[float, float]
"""The lower and the upper end of an interval."""
JEFFREYS_DRAWS = 20_000
NO_SPREAD = 1e-12
"""Replicates that differ by less differ by rounding only."""
FEW_UNITS, FEW_OF_CLASS = 20, 10
"""Below this number of independent units, or of units of one class, bootstrap intervals are unreliable."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval: low <= estimate <= high, or all nan if undefined."""

    estimate: float
    low: float
    high: float
    method: str
    """bca, logit_normal, widened_normal, normal, logit_t, widened_t, t, corrected_t; `no_spread` if the resamples do
    not vary; `undefined`."""
    units: int
    """Independent units that were resampled: groups, or rows without groups."""
    rarer_units: int
    """The units that contain the rarer class."""

    @property
    def few_units(self) -> bool:
        """True if the interval is based on fewer than 20 units, or 10 of the rarer class. Report this with it."""
        return self.units < FEW_UNITS or self.rarer_units < FEW_OF_CLASS


def level_text(level: float) -> str:
    """Return a confidence level in percent."""
    return f"{100 * level:g}%"


def usable(replicates: FloatArray) -> FloatArray | None:
    """The replicates that are defined, or None if they do not vary."""
    defined = replicates[np.isfinite(replicates)]
    return defined if defined.size > 1 and np.ptp(defined) > NO_SPREAD else None


def count_metric_interval(
    metric: Metric, unit_counts: Counts, replicates: FloatArray, level: float
) -> tuple[str, Bounds]:
    """The method, `bca` or `no_spread`, and the interval of a metric of counts.

    Args:
        metric: a metric of the basis COUNTS.
        unit_counts: the counts (U,) of each unit.
        replicates: (R,) the metric on resamples; nan where undefined.
        level: the confidence level.
    """
    total = Counts(*(float(cell.sum()) for cell in vars(unit_counts).values()))
    estimate, defined = float(metric.function(total)), usable(replicates)
    # At an end of the metric's scale, replicates vary only if some have a zero denominator. That is no spread.
    if defined is None or estimate in (metric.lowest, 1.0):
        return "no_spread", bound_counts(metric, total, units_of_classes(unit_counts), level)
    without_unit = Counts(*(getattr(total, name) - cell for name, cell in vars(unit_counts).items()))
    return "bca", bca(estimate, defined, np.asarray(metric.function(without_unit)), level)


def units_of_classes(unit_counts: Counts) -> tuple[int, int]:
    """The number of units that contain positives, and of units that contain negatives."""
    return int(np.count_nonzero(unit_counts.positives)), int(np.count_nonzero(unit_counts.negatives))


def bca(estimate: float, replicates: FloatArray, jackknife: FloatArray, level: float) -> Bounds:
    """Bias-corrected and accelerated percentiles of the replicates (R,).

    `jackknife` (U,) holds the metric without each unit.

    References:
        Efron 1987, https://doi.org/10.2307/2289144.
    """
    below = np.mean(replicates < estimate) + np.mean(replicates == estimate) / 2
    edge = 0.5 / replicates.size
    bias = ndtri(np.clip(below, edge, 1 - edge))
    influence = jackknife.mean() - jackknife
    squares = influence * influence
    spread = squares.sum() ** 1.5
    acceleration = np.vecdot(squares, influence) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(replicates, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def logit_normal(estimate: float, replicates: FloatArray, level: float) -> Bounds:
    """Normal interval on the logit scale, with the standard deviation of the replicates; for areas in (0, 1)."""
    half = _z(level) * replicates.std(ddof=1) / (estimate * (1 - estimate))
    low, high = expit(logit(estimate) + np.array([-half, half]))
    return float(low), float(high)


def widened_normal(estimate: float, replicates: FloatArray, level: float) -> Bounds:
    """Normal interval whose lower end is reduced by the upward bias of the estimate; never below 0.

    For ECE, a sum of absolute gaps that noise can only increase. If the true gaps are 0, noise e in the data and e' in
    the resample increase the estimate by E|e| and its replicates by another E|e + e'| - E|e| = (sqrt 2 - 1) E|e|. So
    the bias is the one of the replicates divided by sqrt 2 - 1. If the gaps are large, both are 0.
    """
    half = _z(level) * replicates.std(ddof=1)
    bias = max(0.0, float(replicates.mean()) - estimate) / (np.sqrt(2) - 1)
    return max(0.0, float(estimate - bias - half)), float(estimate + half)


def normal(estimate: float, replicates: FloatArray, level: float) -> Bounds:
    """Normal interval with the standard deviation of the replicates."""
    half = float(_z(level) * replicates.std(ddof=1))
    return estimate - half, estimate + half


def two_sided_p(difference: float, standard_deviation: float) -> float:
    """The probability that a normal variable of mean 0 is at least as far from 0 as the difference."""
    return float(2 * ndtr(-abs(difference) / standard_deviation))


def corrected_t_interval(differences: Sequence[float], *, tested: float, level: float) -> Interval:
    """The mean of differences (J,) over J random splits of one data set, with the corrected resampled t interval.

    Splits of one data set overlap, so their differences are correlated. The variance of the mean is (1 / J + tested)
    times the variance of one difference, not 1 / J.

    Args:
        differences: one per split.
        tested: evaluated images divided by the other images of a split.
        level: the confidence level.

    Returns:
        The interval. Its ends are nan for one split, or if all differences are equal.

    References:
        Nadeau and Bengio 2003, https://doi.org/10.1023/A:1024068626366.
    """
    values = np.asarray(differences, dtype=np.float64)
    estimate = float(values.mean())
    if values.size < 2 or np.ptp(values) <= NO_SPREAD:
        return Interval(estimate, np.nan, np.nan, "no_spread", values.size, values.size)
    error = values.std(ddof=1) * np.sqrt(1 / values.size + tested)
    half = float(student_t.ppf((1 + level) / 2, values.size - 1) * error)
    return Interval(estimate, estimate - half, estimate + half, "corrected_t", values.size, values.size)


def zero_event_bound(units: int, level: float) -> float:
    """The largest share that `units` draws miss with probability (1 - level) / 2: the Clopper-Pearson bound."""
    return float(1 - ((1 - level) / 2) ** (1 / units)) if units else 1.0


def bound_counts(metric: Metric, counts: Counts, units: tuple[int, int], level: float) -> Bounds:
    """Percentiles of a metric of counts under Jeffreys' prior for the shares of the four outcomes.

    Half an observation is added to each outcome. For recall this is the Jeffreys interval.

    Args:
        metric: a metric of the basis COUNTS.
        counts: of all rows; they are scaled to the units.
        units: the independent units that contain positives, and those that contain negatives.
        level: the confidence level.

    References:
        Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286.
    """
    per_positive = units[0] / max(float(counts.positives), 1.0)
    per_negative = units[1] / max(float(counts.negatives), 1.0)
    cells = [counts.tp * per_positive, counts.tn * per_negative, counts.fp * per_negative, counts.fn * per_positive]
    shares = np.random.default_rng(0).dirichlet(np.array(cells, dtype=np.float64) + 0.5, size=JEFFREYS_DRAWS)
    low, high = np.quantile(metric.function(Counts(*shares.T)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bound_area(metric: Metric, curve: ThresholdCounts, units: tuple[int, int], level: float) -> Bounds:
    """The worst and the best area if a share of one class, not observed so far, ranked below or above all others.

    `units` are the independent units that contain positives and negatives. Each share is their `zero_event_bound`. For
    the area under the ROC curve the lower end is the exact binomial bound from as many disjoint pairs as the rarer
    class has units. Without units of both classes the interval is [0, 1].
    """
    if 0 in units:
        return 0.0, 1.0
    positives, negatives = (zero_event_bound(count, level) for count in units)
    tp, fp = curve.tp, curve.fp
    worse = [(_shifted(tp, positives, to_top=False), _shifted(fp, 0.0)), (_shifted(tp, 0.0), _shifted(fp, negatives))]
    better = [(_shifted(tp, positives), _shifted(fp, 0.0)), (_shifted(tp, 0.0), _shifted(fp, negatives, to_top=False))]
    low = min(float(metric.function(ThresholdCounts(curve.scores, *cells))) for cells in worse)
    high = max(float(metric.function(ThresholdCounts(curve.scores, *cells))) for cells in better)
    return low, min(high, 1.0)  # sums of shares may round to slightly above 1


def bound_mean(metric: Metric, estimate: float, units: int, level: float) -> Bounds:
    """A mean of terms if the `zero_event_bound` share of rows were all correct, or all wrong with certainty."""
    share = zero_event_bound(units, level)
    return (1 - share) * estimate, (1 - share) * estimate + share * _largest_term(metric)


def bound_difference(metric: Metric, estimate: float, units: int, level: float) -> Bounds:
    """A difference if the `zero_event_bound` share of rows favored one side only, or the other side only."""
    share = zero_event_bound(units, level)
    middle, half = (1 - share) * estimate, share * _largest_term(metric)
    return middle - half, middle + half


def bound_counts_difference(
    metric: Metric, sides: Sequence[tuple[Counts, Counts]], units: tuple[int, int], level: float
) -> Bounds:
    """The mean over `sides` of a difference of two models if the unobserved rows favored one model only.

    The unobserved share of each class is the `zero_event_bound` of its `units`. A share of rows can change MCC and
    precision by far more than itself if almost no row is predicted positive.
    """
    shares = [zero_event_bound(count, level) for count in units]
    ranges = [tuple(_range(metric, counts, *shares) for counts in side) for side in sides]
    low = float(np.mean([first[0] - second[1] for first, second in ranges]))
    return low, float(np.mean([first[1] - second[0] for first, second in ranges]))


def _range(metric: Metric, counts: Counts, of_positives: float, of_negatives: float) -> Bounds:
    """The range of a metric if these shares of the classes are decided like the rest, all correctly or all wrongly."""
    tp = [counts.tp + of_positives * (correct - counts.tp) for correct in (counts.tp, 0.0, counts.positives)]
    tn = [counts.tn + of_negatives * (correct - counts.tn) for correct in (counts.tn, 0.0, counts.negatives)]
    combinations = (Counts(p, n, counts.negatives - n, counts.positives - p) for p in tp for n in tn)
    values = [float(metric.function(combination)) for combination in combinations]
    return min(values), max(values)


def _largest_term(metric: Metric) -> float:
    """The effect of one row: 1 for rates and areas, else the term of a row that is wrong with certainty."""
    return mean_of_terms(metric.function([1], [0.0])) if metric.basis is Basis.TERMS else 1.0


def _shifted(counts: FloatArray, share: float, *, to_top: bool = True) -> FloatArray:
    """Counts (K + 3,) if a share of a class ranks above, or below, all scores of counts (K + 1,)."""
    total = counts[0]
    return np.concatenate([[total], (1 - share) * counts + (share * total if to_top else 0.0), [0.0]])


def _z(level: float) -> float:
    return float(ndtri((1 + level) / 2))

"""Formulas of confidence intervals, each from an estimate and what resampling says about it.

A resample cannot hold what the data do not: where every resample gives the same value (no miss among all positives,
a perfect order), its spread is 0 and says nothing. The functions named `unseen_*` then bound what `units` independent
units could have hidden, instead of returning a point.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from streetvision.eval.counts import Counts, Cuts, FloatArray
from streetvision.eval.metrics import Basis, Metric, mean_of_terms

Ends = tuple[float, float]
JEFFREYS_DRAWS = 20_000
NO_SPREAD = 1e-12
"""Replicates that differ by less differ by rounding only."""


def usable(replicates: FloatArray) -> FloatArray | None:
    """The replicates that are defined, or None where they show no spread."""
    defined = replicates[np.isfinite(replicates)]
    return defined if defined.size > 1 and np.ptp(defined) > NO_SPREAD else None


def of_counts(metric: Metric, of_units: Counts, replicates: FloatArray, level: float) -> tuple[str, Ends]:
    """The method and the interval of a metric of counts: `bca`, or `unseen` where resampling shows no spread.

    `of_units` holds the counts (U,) of each unit, `replicates` (R,) the metric on resamples, nan where it has no value.
    At the ends of a metric's scale a resample leaves them only where it lacks what the metric divides by: no spread.
    """
    whole = Counts(*(float(cell.sum()) for cell in vars(of_units).values()))
    estimate, drawn = float(metric.function(whole)), usable(replicates)
    if drawn is None or estimate in (metric.lowest, 1.0):
        return "unseen", unseen_counts(metric, whole, units_of_classes(of_units), level)
    rest = Counts(*(getattr(whole, name) - cell for name, cell in vars(of_units).items()))
    return "bca", bca(estimate, drawn, np.asarray(metric.function(rest)), level)


def units_of_classes(of_units: Counts) -> tuple[int, int]:
    """How many units hold positives, and how many hold negatives."""
    return int(np.count_nonzero(of_units.positives)), int(np.count_nonzero(of_units.negatives))


def bca(estimate: float, replicates: FloatArray, jackknife: FloatArray, level: float) -> Ends:
    """Bias-corrected and accelerated percentiles of the replicates (R,).

    `jackknife` (U,) holds the metric without each unit in turn. Efron 1987, https://doi.org/10.2307/2289144.
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


def logit_normal(estimate: float, replicates: FloatArray, level: float) -> Ends:
    """Normal interval on the logit scale, with the standard deviation of the replicates; for areas in (0, 1)."""
    half = _z(level) * replicates.std(ddof=1) / (estimate * (1 - estimate))
    low, high = expit(logit(estimate) + np.array([-half, half]))
    return float(low), float(high)


def widened_normal(estimate: float, replicates: FloatArray, level: float) -> Ends:
    """Normal interval whose lower end is moved down by the upward bias of the estimate; never below 0.

    For ECE, a sum of absolute gaps that noise can only enlarge. Where the true gaps are 0, noise e in the data and e'
    in the resample enlarge the estimate by E|e| and its resamples by another E|e + e'| - E|e| = (sqrt 2 - 1) E|e|, so
    the bias is what resampling shows divided by sqrt 2 - 1; where the gaps are large, both are 0.
    """
    half = _z(level) * replicates.std(ddof=1)
    bias = max(0.0, float(replicates.mean()) - estimate) / (np.sqrt(2) - 1)
    return max(0.0, float(estimate - bias - half)), float(estimate + half)


def unseen_counts(metric: Metric, counts: Counts, units: tuple[int, int], level: float) -> Ends:
    """Percentiles of a metric over the shares of the four outcomes that Jeffreys' prior leaves plausible.

    Half an observation is added to each outcome; `units` are the independent units that hold positives and negatives,
    and the counts are scaled to them. For recall this is the Jeffreys interval of Brown, Cai and DasGupta 2001,
    https://doi.org/10.1214/ss/1009213286.
    """
    per_positive = units[0] / max(float(counts.positives), 1.0)
    per_negative = units[1] / max(float(counts.negatives), 1.0)
    cells = [counts.tp * per_positive, counts.tn * per_negative, counts.fp * per_negative, counts.fn * per_positive]
    shares = np.random.default_rng(0).dirichlet(np.array(cells, dtype=np.float64) + 0.5, size=JEFFREYS_DRAWS)
    low, high = np.quantile(metric.function(Counts(*shares.T)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def unseen_order(metric: Metric, cuts: Cuts, units: tuple[int, int], level: float) -> Ends:
    """The worst and the best area if one class had a share, unseen so far, at the wrong or the right end of the scores.

    `units` are the independent units that hold positives and negatives; each share is the largest that they would
    miss with probability (1 - level) / 2. For the area under the ROC curve the lower end is the exact binomial bound
    from as many disjoint pairs as the rarer class has units. Without units of both classes nothing is known.
    """
    if 0 in units:
        return 0.0, 1.0
    positives, negatives = (unseen_share(count, level) for count in units)
    tp, fp = cuts.tp, cuts.fp
    worse = [(_moved(tp, positives, to_top=False), _moved(fp, 0.0)), (_moved(tp, 0.0), _moved(fp, negatives))]
    better = [(_moved(tp, positives), _moved(fp, 0.0)), (_moved(tp, 0.0), _moved(fp, negatives, to_top=False))]
    low = min(float(metric.function(Cuts(cuts.scores, *world))) for world in worse)
    high = max(float(metric.function(Cuts(cuts.scores, *world))) for world in better)
    return low, min(high, 1.0)  # sums of shares may round to a hair above 1


def unseen_terms(metric: Metric, estimate: float, units: int, level: float) -> Ends:
    """The mean if the largest share of rows that `units` would miss were all right, or all wrong with certainty."""
    share = unseen_share(units, level)
    return (1 - share) * estimate, (1 - share) * estimate + share * span(metric)


def unseen_difference(metric: Metric, estimate: float, units: int, level: float) -> Ends:
    """The difference if the share of rows that `units` would miss spoke wholly for the one side, or for the other."""
    share = unseen_share(units, level)
    middle, half = (1 - share) * estimate, share * span(metric)
    return middle - half, middle + half


def unseen_counts_difference(
    metric: Metric, sides: Sequence[tuple[Counts, Counts]], units: tuple[int, int], level: float
) -> Ends:
    """The mean over `sides` of the difference between two models if what was missed spoke wholly for one, or the other.

    Missed is the share of each class that its `units` would miss. A share of rows can move MCC and precision by far
    more than itself where hardly any row is called positive.
    """
    shares = [unseen_share(count, level) for count in units]
    reach = [tuple(_reach(metric, counts, *shares) for counts in side) for side in sides]
    low = float(np.mean([a[0] - b[1] for a, b in reach]))
    return low, float(np.mean([a[1] - b[0] for a, b in reach]))


def _reach(metric: Metric, counts: Counts, of_positives: float, of_negatives: float) -> Ends:
    """The ends of a metric when such shares of the classes are decided as the rest, all right or all wrong."""
    tp = [counts.tp + of_positives * (right - counts.tp) for right in (counts.tp, 0.0, counts.positives)]
    tn = [counts.tn + of_negatives * (right - counts.tn) for right in (counts.tn, 0.0, counts.negatives)]
    worlds = (Counts(p, n, counts.negatives - n, counts.positives - p) for p in tp for n in tn)
    values = [float(metric.function(world)) for world in worlds]
    return min(values), max(values)


def span(metric: Metric) -> float:
    """How far a metric can move: 1 for rates and areas, else the term of a row that is wrong with certainty."""
    return mean_of_terms(metric.function([1], [0.0])) if metric.basis is Basis.TERMS else 1.0


def unseen_share(units: int, level: float) -> float:
    """The largest share of units that `units` draws miss with probability (1 - level) / 2: Clopper and Pearson."""
    return float(1 - ((1 - level) / 2) ** (1 / units)) if units else 1.0


def two_sided_p(difference: float, spread: float) -> float:
    """Chance that a normal variable of mean 0 and this spread lies at least as far out as the difference."""
    return float(2 * ndtr(-abs(difference) / spread))


def normal(estimate: float, replicates: FloatArray, level: float) -> Ends:
    """Normal interval with the standard deviation of the replicates."""
    half = float(_z(level) * replicates.std(ddof=1))
    return estimate - half, estimate + half


def _z(level: float) -> float:
    return float(ndtri((1 + level) / 2))


def _moved(counts: FloatArray, share: float, *, to_top: bool = True) -> FloatArray:
    """Counts at every cut (K + 3,) when a share of a class stands above, or below, all scores of counts (K + 1,)."""
    total = counts[0]
    return np.concatenate([[total], (1 - share) * counts + (share * total if to_top else 0.0), [0.0]])

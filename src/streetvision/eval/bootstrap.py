"""Confidence intervals for every metric at once, and paired differences between two models, from the same resamples.

Rows that belong together (frames of one track, photos of one place) are drawn together: of 30 near-identical frames
a plain bootstrap believes it has seen 30 things.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from streetvision.eval import intervals
from streetvision.eval.counts import FloatArray, all_cuts, confusion_counts
from streetvision.eval.metrics import METRICS, Basis, Metric, all_metrics
from streetvision.eval.reliability import ece_band
from streetvision.eval.resampling import Predictions, Resampling, ResamplingUnits, SortedScores, replicates

USUAL = Resampling()
"""A thousand resamples, 95 % intervals, rows that stand alone."""
FEW_UNITS, FEW_OF_CLASS = 20, 10
"""Below this many independent units, or units of one class, no bootstrap interval is to be trusted far."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval: low <= estimate <= high, or all nan where it is not defined."""

    estimate: float
    low: float
    high: float
    method: str
    """bca, logit_normal, widened_normal, normal; `unseen` where resampling shows no spread; `undefined`."""
    units: int
    """Independent units that were drawn: groups, or rows where there are no groups."""
    rarer_units: int
    """Those of them that hold the rarer class."""

    @property
    def few_units(self) -> bool:
        """True where the interval rests on fewer than 20 units, or 10 of the rarer class: say so beside it."""
        return self.units < FEW_UNITS or self.rarer_units < FEW_OF_CLASS


@dataclass(frozen=True)
class Difference(Interval):
    """The metric of a minus the metric of b, with its interval."""

    p_value: float
    """Two-sided, for "there is no difference"."""


def bootstrap_intervals(labels: ArrayLike, judged: Predictions, how: Resampling = USUAL) -> dict[str, Interval]:
    """An interval for every metric of the table, for labels (N,) and what was judged on the same rows.

    Count metrics, Brier score and NLL: BCa, with the jackknife over units. The Brier score and NLL are means of
    skewed terms, which is what the acceleration corrects. Areas: normal on the logit scale, since percentiles fail
    near 1. ECE: normal, widened downwards by its own bias, and to 0 where `ece_band` holds it: rows that are nearly
    certain show resampling too little. Where resampling shows no spread, a bound on what the data could not show
    (`intervals`).

    Raises:
        DataError: unusable arrays, not one group a row.
    """
    truth, p, decisions = judged.checked(labels)
    order = np.argsort(p, kind="stable")  # rows that come sorted are ranked without a gather for each resample
    ranked = SortedScores(truth[order], Predictions(p[order], decisions[order]))
    units = how.units(truth.size).reordered(order)
    sample = _Sample(ranked, units, how)
    (drawn,) = map(_of_both_classes, replicates([ranked], units, how))
    return {name: sample.interval(name, values) for name, values in drawn.items()}


def paired_difference(
    labels: ArrayLike, a: Predictions, b: Predictions, how: Resampling = USUAL
) -> dict[str, Difference]:
    """For every metric: that of `a` minus that of `b` on the same rows, its interval and p-value.

    Both are judged on the same resamples, so what they share cancels. Interval and p-value come from one normal
    approximation and never contradict each other. Where no resample shows a spread, the interval is what a share of
    rows, unseen so far, could change, and the p-value that of a sign test over the units of the rarer class.

    Raises:
        DataError: as `bootstrap_intervals` does.
    """
    return mean_difference([Pairing(labels, a, b)], how)


class Pairing(NamedTuple):
    """Two models on the rows of one test set."""

    labels: ArrayLike
    """(N,) 0 or 1."""
    a: Predictions
    b: Predictions


def mean_difference(pairings: Sequence[Pairing], how: Resampling = USUAL) -> dict[str, Difference]:
    """For every metric: the mean over test sets of `a` minus `b`, as `paired_difference` has it for one.

    `how.groups` are those of the rows of all test sets, one set behind the other: what stands in several of them is
    drawn together. Models may differ from set to set; the interval is for these models, on other images.

    Raises:
        DataError: as `bootstrap_intervals` does.
    """
    sides = [(SortedScores(labels, a), SortedScores(labels, b)) for labels, a, b in pairings]
    ends = np.cumsum([0, *(first.truth.size for first, _ in sides)])
    units = how.units(int(ends[-1]))
    parts = [slice(*pair) for pair in pairwise(ends.tolist())]
    drawn = [replicates(side, units, how, rows=rows) for side, rows in zip(sides, parts, strict=True)]
    kept = [tuple(map(_of_both_classes, both)) for both in drawn]
    pairs = _Pairs(sides, units)
    return {
        name: pairs.difference(name, np.mean([a[name] - b[name] for a, b in kept], axis=0), how.level)
        for name in METRICS
    }


class _Sample:
    """The rows as they are: what the formulas need beside the replicates."""

    def __init__(self, ranked: SortedScores, units: ResamplingUnits, how: Resampling) -> None:
        self.ranked, self.units, self.level = ranked, units, how.level
        self.how = replace(how, groups=units.of_row.tolist() if units.grouped else None)
        self.estimates = all_metrics(ranked.truth, ranked.probabilities, ranked.decisions)
        self.of_units = units.counts(ranked.truth, ranked.decisions)
        self.of_classes = intervals.units_of_classes(self.of_units)

    def interval(self, name: str, values: FloatArray) -> Interval:
        """The interval of one metric from its replicates."""
        estimate, units = self.estimates[name], (self.units.count, min(self.of_classes))
        if np.isnan(estimate):
            return Interval(estimate, estimate, estimate, "undefined", *units)
        method, ends = self._ends(name, values)
        return Interval(estimate, min(ends[0], estimate), max(ends[1], estimate), method, *units)

    def _ends(self, name: str, values: FloatArray) -> tuple[str, intervals.Ends]:
        """The method that suits the metric, and its interval."""
        metric, estimate, usable = METRICS[name], self.estimates[name], intervals.usable(values)
        level = self.level
        if metric.basis is Basis.COUNTS:
            return intervals.of_counts(metric, self.of_units, values, level)
        if metric.basis is Basis.CUTS:
            if usable is not None and 0 < estimate < 1:
                return "logit_normal", intervals.logit_normal(estimate, usable, level)
            cuts = all_cuts(self.ranked.truth, self.ranked.probabilities)
            return "unseen", intervals.unseen_order(metric, cuts, self.of_classes, level)
        if usable is None:
            return "unseen", intervals.unseen_terms(metric, estimate, self.units.count, level)
        if name == "ece":
            low, high = intervals.widened_normal(estimate, usable, level)
            by_chance = low > 0 and estimate <= ece_band(self.ranked.probabilities, self.how)[1]
            return "widened_normal", (0.0 if by_chance else low, high)
        return "bca", intervals.bca(estimate, usable, self._jackknife(metric), level)

    def _jackknife(self, metric: Metric) -> FloatArray:
        """A mean of terms (U,) without each unit in turn."""
        terms: FloatArray = metric.function(self.ranked.truth, self.ranked.probabilities).values
        rest: FloatArray = terms.sum() - self.units.sums(terms)
        return rest / (terms.size - self.units.sums(np.ones(terms.size)))


class _Pairs:
    """Both sides of every test set as they are."""

    def __init__(self, sides: Sequence[tuple[SortedScores, SortedScores]], units: ResamplingUnits) -> None:
        self.of_sides = [
            tuple(all_metrics(one.truth, one.probabilities, one.decisions) for one in side) for side in sides
        ]
        self.counts = [
            (confusion_counts(a.truth, a.decisions), confusion_counts(b.truth, b.decisions)) for a, b in sides
        ]
        truth = np.concatenate([first.truth for first, _ in sides])
        self.of_classes = intervals.units_of_classes(units.counts(truth, truth))
        self.units = units.count, min(self.of_classes)

    def difference(self, name: str, values: FloatArray, level: float) -> Difference:
        """The mean difference of one metric from its replicates (R,)."""
        estimate = float(np.mean([a[name] - b[name] for a, b in self.of_sides]))
        if np.isnan(estimate):
            return Difference(estimate, estimate, estimate, "undefined", *self.units, estimate)
        usable = intervals.usable(values)
        if usable is None:
            p_value = 1.0 if abs(estimate) < intervals.NO_SPREAD else min(1.0, 2 * 0.5 ** self.units[1])
            return Difference(estimate, *self._unseen(METRICS[name], estimate, level), "unseen", *self.units, p_value)
        p_value = intervals.two_sided_p(estimate, usable.std(ddof=1))
        return Difference(estimate, *intervals.normal(estimate, usable, level), "normal", *self.units, p_value)

    def _unseen(self, metric: Metric, estimate: float, level: float) -> intervals.Ends:
        if metric.basis is Basis.COUNTS:
            return intervals.unseen_counts_difference(metric, self.counts, self.of_classes, level)
        return intervals.unseen_difference(metric, estimate, self.units[1], level)


def _of_both_classes(drawn: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """The replicates, with nan for count metrics and areas where a resample lost one of the two classes.

    By convention they are 0 there, which says nothing of the model; ROC-AUC marks these resamples.
    """
    lost = np.isnan(drawn["roc_auc"])
    if lost.all():
        return drawn
    needs_both = {name for name, metric in METRICS.items() if metric.basis is not Basis.TERMS}
    return {name: np.where(lost & (name in needs_both), np.nan, values) for name, values in drawn.items()}

"""Confidence intervals of every metric, and paired differences of two models, from the same bootstrap resamples.

Dependent rows (frames of one track, photos of one place) are drawn together. Otherwise 30 near-identical frames would
count as 30 independent observations, and the intervals would be too narrow.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streetvision.contracts.errors import DataError
from streetvision.eval import intervals
from streetvision.eval.counts import FloatArray, confusion_counts, threshold_counts
from streetvision.eval.intervals import Interval
from streetvision.eval.metrics import METRICS, Basis, all_metrics
from streetvision.eval.predictions import Predictions, units_of
from streetvision.eval.reliability import ece_band
from streetvision.eval.resampling import DEFAULT_RESAMPLING, Resampling, SortedScores, replicates


@dataclass(frozen=True)
class Difference(Interval):
    """The metric of the variant minus that of the baseline, with its interval."""

    p_value: float
    """Two-sided, of the hypothesis "no difference"."""


class PairedPredictions(NamedTuple):
    """Two models on the same rows of one test set."""

    variant: Predictions
    baseline: Predictions


def bootstrap_intervals(predictions: Predictions, resampling: Resampling = DEFAULT_RESAMPLING) -> dict[str, Interval]:
    """An interval for every metric of the table.

    Count metrics, Brier score and NLL: BCa, with the jackknife over units. The Brier score and NLL are means of skewed
    terms, which the acceleration corrects. Areas: normal on the logit scale, since percentiles fail near 1. ECE:
    normal, extended downwards by its own bias, and to 0 if the estimate is within `ece_band`, since rows that are
    almost certain make the resamples vary too little. If the resamples do not vary: a bound, see `intervals`.
    """
    order = np.argsort(predictions.probabilities, kind="stable")  # sorted rows need no gather for each resample
    rows = predictions.subset(order)
    units = predictions.units.reordered(order)
    (drawn,) = map(without_one_class_resamples, replicates([SortedScores(rows)], units, resampling))
    estimates = all_metrics(rows.labels, rows.probabilities, rows.decisions)
    unit_counts = units.counts(rows.labels, rows.decisions)
    class_units = intervals.units_of_classes(unit_counts)
    curve = threshold_counts(rows.labels, rows.probabilities)
    level = resampling.level

    def bounds(name: str) -> tuple[str, intervals.Bounds]:
        metric, estimate, defined = METRICS[name], estimates[name], intervals.usable(drawn[name])
        if metric.basis is Basis.COUNTS:
            return intervals.count_metric_interval(metric, unit_counts, drawn[name], level)
        if metric.basis is Basis.THRESHOLDS:
            if defined is not None and 0 < estimate < 1:
                return "logit_normal", intervals.logit_normal(estimate, defined, level)
            return "no_spread", intervals.bound_area(metric, curve, class_units, level)
        if defined is None:
            return "no_spread", intervals.bound_mean(metric, estimate, units.count, level)
        if name == "ece":
            low, high = intervals.widened_normal(estimate, defined, level)
            explained_by_chance = low > 0 and estimate <= ece_band(predictions, resampling)[1]
            return "widened_normal", (0.0 if explained_by_chance else low, high)
        terms: FloatArray = metric.function(rows.labels, rows.probabilities).values
        jackknife = (terms.sum() - units.sums(terms)) / (terms.size - units.sums(np.ones(terms.size)))
        return "bca", intervals.bca(estimate, defined, jackknife, level)

    result = {}
    for name, estimate in estimates.items():
        if np.isnan(estimate):
            method, (low, high) = "undefined", (estimate, estimate)
        else:
            method, (low, high) = bounds(name)
            low, high = min(low, estimate), max(high, estimate)
        result[name] = Interval(estimate, low, high, method, units.count, min(class_units))
    return result


def paired_difference(
    variant: Predictions, baseline: Predictions, resampling: Resampling = DEFAULT_RESAMPLING
) -> dict[str, Difference]:
    """For every metric: the variant minus the baseline on the same rows, with interval and p-value.

    Both are evaluated on the same resamples, so common variation cancels. Interval and p-value come from one normal
    approximation and never contradict each other. If the resamples do not vary, the interval is a bound, see
    `intervals`, and the p-value is that of a sign test over the units of the rarer class.

    Raises:
        DataError: the labels or the groups differ.
    """
    return mean_difference([PairedPredictions(variant, baseline)], resampling)


def mean_difference(
    pairs: Sequence[PairedPredictions], resampling: Resampling = DEFAULT_RESAMPLING
) -> dict[str, Difference]:
    """For every metric: the mean over test sets of the variant minus the baseline, like `paired_difference` for one.

    A group may occur in several test sets; its rows are drawn together. The models may differ from set to set. The
    interval is for these models, on other images.

    Raises:
        DataError: the labels or the groups of a pair differ.
    """
    for variant, baseline in pairs:
        if not np.array_equal(variant.labels, baseline.labels) or variant.groups != baseline.groups:
            raise DataError("the two models of a pair have different labels or groups", "predict the same rows")
    groups: list[Hashable] = [group for p, _ in pairs for group in (p.groups or [None] * len(p))]
    units = units_of(groups, len(groups))
    ends = np.cumsum([0, *(len(variant) for variant, _ in pairs)]).tolist()
    differences = []
    for pair, part in zip(pairs, (slice(*ends) for ends in pairwise(ends)), strict=True):
        drawn = replicates([SortedScores(model) for model in pair], units, resampling, rows=part)
        a, b = map(without_one_class_resamples, drawn)
        differences.append({name: a[name] - b[name] for name in METRICS})
    estimates = [[all_metrics(model.labels, model.probabilities, model.decisions) for model in pair] for pair in pairs]
    labels = np.concatenate([variant.labels for variant, _ in pairs])
    class_units = intervals.units_of_classes(units.counts(labels, labels))
    n_units, level = (units.count, min(class_units)), resampling.level

    def difference(name: str) -> Difference:
        estimate = float(np.mean([variant[name] - baseline[name] for variant, baseline in estimates]))
        if np.isnan(estimate):
            return Difference(estimate, estimate, estimate, "undefined", *n_units, estimate)
        defined = intervals.usable(np.mean([of_pair[name] for of_pair in differences], axis=0))
        if defined is not None:
            p_value = intervals.two_sided_p(estimate, defined.std(ddof=1))
            return Difference(estimate, *intervals.normal(estimate, defined, level), "normal", *n_units, p_value)
        metric = METRICS[name]
        if metric.basis is Basis.COUNTS:
            counts = [
                (confusion_counts(a.labels, a.decisions), confusion_counts(b.labels, b.decisions)) for a, b in pairs
            ]
            bounds = intervals.bound_counts_difference(metric, counts, class_units, level)
        else:
            bounds = intervals.bound_difference(metric, estimate, n_units[1], level)
        no_difference = abs(estimate) < intervals.NO_SPREAD
        sign_test = 1.0 if no_difference else min(1.0, 2 * 0.5 ** n_units[1])
        return Difference(estimate, *bounds, "no_spread", *n_units, sign_test)

    return {name: difference(name) for name in METRICS}


def without_one_class_resamples(drawn: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """The replicates, with nan for count metrics and areas of resamples that lost one of the two classes.

    These metrics are 0 there by convention, which does not describe the model. ROC-AUC is nan in these resamples.
    """
    one_class = np.isnan(drawn["roc_auc"])
    if one_class.all():
        return drawn
    needs_both = {name for name, metric in METRICS.items() if metric.basis is not Basis.TERMS}
    return {name: np.where(one_class & (name in needs_both), np.nan, values) for name, values in drawn.items()}

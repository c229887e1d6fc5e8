"""Metrics of repeated cross-validation: means over the repeats, with intervals from resampled groups of images."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from streetvision.eval import intervals
from streetvision.eval.bootstrap import (
    Difference,
    bootstrap_intervals,
    paired_difference,
    without_one_class_resamples,
)
from streetvision.eval.intervals import Interval
from streetvision.eval.metrics import METRICS, Basis, all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import DEFAULT_RESAMPLING, Resampling, SortedScores, replicates


def cross_validated_intervals(
    repeats: Sequence[Predictions], resampling: Resampling = DEFAULT_RESAMPLING, *, folds: int
) -> dict[str, Interval]:
    """Return the mean over the repeats of every metric, with its interval.

    All repeats are evaluated on the same resamples of groups, so the interval is that of the mean. It is meant for the
    mean performance of these models on images like these; the models are not trained again on the resamples, so it is
    not that of a model that is trained on other images.

    The interval is Student's, for areas on the logit scale. At an end of the metric's scale, and if the resamples do
    not vary, it is the bound of `bootstrap_intervals`. An ECE that chance explains has the lower end 0, as there.

    The standard deviation of the resamples is multiplied by sqrt(K / (K - 1)) with K folds: the images of one fold are
    the training images of the other folds' models, so their errors are not independent, and the plain interval is too
    narrow (Bates et al.). The factor corresponds to an evaluation of as many images as a model is trained on. It is no
    exact correction, but was checked by simulation (tests/statistical/test_cross_fit.py).

    Args:
        repeats: The predictions of the same N images in each repeat, each image by a model that did not see its group.
        resampling: Settings of the bootstrap.
        folds: K.

    References:
        Intervals from the variance of the images' errors: Bayle et al. 2020, arXiv 2007.12671, section 2. Why these are
        too narrow with few images: Bates, Hastie and Tibshirani 2021, arXiv 2104.00673.
    """
    first = repeats[0]
    units = first.units
    resampled = replicates([SortedScores(repeat) for repeat in repeats], units, resampling)
    drawn = [without_one_class_resamples(of_repeat) for of_repeat in resampled]
    estimates = [all_metrics(repeat.labels, repeat.probabilities, repeat.decisions) for repeat in repeats]
    without_spread = bootstrap_intervals(first, resampling)
    widening = _widening(units.count, resampling.level, folds)
    result = {}
    for name, metric in METRICS.items():
        estimate = float(np.mean([of_repeat[name] for of_repeat in estimates]))
        defined = intervals.usable(np.mean([of_repeat[name] for of_repeat in drawn], axis=0))
        # At an end of its scale, a metric varies only where a denominator is zero.
        at_end = metric.basis is not Basis.TERMS and not metric.lowest < estimate < 1
        if np.isnan(estimate) or defined is None or at_end:
            result[name] = without_spread[name]
            continue
        defined = defined.mean() + widening * (defined - defined.mean())
        if metric.basis is Basis.THRESHOLDS:
            method, (low, high) = "logit_t", intervals.logit_normal(estimate, defined, resampling.level)
        elif name == "ece":
            method, (low, high) = "widened_t", intervals.widened_normal(estimate, defined, resampling.level)
            low = 0.0 if without_spread[name].low == 0 else low
        else:
            method, (low, high) = "t", intervals.normal(estimate, defined, resampling.level)
        low = max(low, metric.lowest)
        if metric.basis is not Basis.TERMS:
            high = min(high, 1.0)
        result[name] = Interval(
            estimate, low, high, method, without_spread[name].units, without_spread[name].rarer_units
        )
    return result


def cross_validated_difference(
    variant: Predictions, baseline: Predictions, resampling: Resampling = DEFAULT_RESAMPLING, *, folds: int
) -> dict[str, Difference]:
    """Return `paired_difference` for predictions of a cross-validation, widened like `cross_validated_intervals`.

    Args:
        variant: The predictions of N images, each by a model that did not see its group.
        baseline: Those of another model for the same images.
        resampling: Settings of the bootstrap.
        folds: K.

    Raises:
        DataError: The labels or the groups differ.
    """
    result = paired_difference(variant, baseline, resampling)
    for name, plain in result.items():
        half = _widening(plain.units, resampling.level, folds) * (plain.high - plain.estimate)
        if plain.method == "normal":
            degrees = max(plain.units - 1, 1)
            quantile = float(student_t.ppf((1 + resampling.level) / 2, degrees))
            p_value = float(2 * student_t.sf(abs(plain.estimate) / half * quantile, degrees))
            low, high = plain.estimate - half, plain.estimate + half
            result[name] = replace(plain, low=low, high=high, method="t", p_value=p_value)
    return result


def _widening(units: int, level: float, folds: int) -> float:
    """The width of an interval of a cross-validation, relative to the normal one of the same resamples."""
    tail = (1 + level) / 2
    student = float(student_t.ppf(tail, max(units - 1, 1)) / norm.ppf(tail))
    return math.sqrt(folds / (folds - 1)) * student

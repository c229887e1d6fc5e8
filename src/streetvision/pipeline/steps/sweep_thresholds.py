"""phase2: the threshold that maximises MCC on phase 1's own scores of VAL_CALIB, and how far it can be trusted."""

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import DataError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import OperatingPoint, ThresholdInterval, ThresholdPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.counts import FloatArray, confusion_counts
from streetvision.eval.metrics import count_metrics, positive_probability
from streetvision.eval.report.plots import plot_mcc_curve
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import mcc_band, threshold_interval
from streetvision.eval.thresholds import (
    decide,
    select_threshold_max_mcc,
    sweep_csv,
    threshold_for_fpr,
    threshold_for_prevalence,
    threshold_for_recall,
)
from streetvision.io.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.pipeline.scores import groups_of, open_scores
from streetvision.pipeline.settings import Phase2Config

BAND_POINTS = 201
"""Thresholds at which the picture shows the interval of MCC."""


def run(context: Context) -> Outcome:
    """Sweep every cut, write the policy, the grid that was asked for, and its picture."""
    schema, config, scores = context.schema, context.settings(Phase2Config), open_scores(context, Split.VAL_CALIB)
    threshold, mcc, metrics = select_threshold_max_mcc(
        scores.logits, scores.labels, config.n_thresholds, return_curve=True
    )
    labels, p = scores.labels.numpy(), positive_probability(scores.logits.numpy())
    how = Resampling(groups_of(context, scores), config.n_resamples, seed=config.seed)
    interval = _interval(labels, p, how)
    at = np.append(np.linspace(0, 1, BAND_POINTS), threshold)
    at.sort()
    band = mcc_band(labels, p, at, how)
    picture = plot_mcc_curve(metrics, threshold=threshold, band=band, moves=(interval.low, interval.high))
    curve = metrics.pop("curve")
    policy = ThresholdPolicy(
        threshold=threshold,
        interval=interval,
        metrics=metrics,
        operating_points=_operating_points(labels, p, config),
        scores=scores.reference,
    )
    for path in (schema.threshold_sweep_csv, schema.mcc_curve_plot):
        path.unlink(missing_ok=True)  # of an earlier run
    if config.save_sweep_curve:
        write_text_atomic(schema.threshold_sweep_csv, sweep_csv(curve))
        write_bytes_atomic(schema.mcc_curve_plot, picture)
    write_json_atomic(schema.thresholds_json, policy.model_dump(mode="json"))
    return Outcome(
        f"{threshold:.3f} [{interval.low:.3f}, {interval.high:.3f}] "
        f"(exact; VAL_CALIB MCC {mcc:.3f}, grid of {config.n_thresholds} {metrics['grid_mcc']:.3f})",
        {"threshold": threshold, "val_calib_mcc": mcc},
        extra_outputs=(schema.threshold_sweep_csv, schema.mcc_curve_plot) if config.save_sweep_curve else (),
    )


def _interval(labels: NDArray[np.int64], p: FloatArray, how: Resampling) -> ThresholdInterval:
    low, high = threshold_interval(labels, p, how)
    units = how.units(labels.size).count
    return ThresholdInterval(low=low, high=high, level=how.level, n_resamples=how.n_resamples, units=units)


def _operating_points(
    labels: NDArray[np.int64], p: FloatArray, config: Phase2Config
) -> dict[str, OperatingPoint | None]:
    def point(threshold: float) -> OperatingPoint:
        counts = confusion_counts(labels, decide(p, threshold))
        return OperatingPoint(threshold=threshold, metrics=count_metrics(counts))

    try:
        at_rate = point(threshold_for_fpr(labels, p, config.target_fpr))
    except DataError:  # negatives of probability 1: a saturated model still has its other thresholds
        at_rate = None
    return {
        "balanced": point(threshold_for_prevalence(labels, p, 0.5)),
        "recall": point(threshold_for_recall(labels, p, config.target_recall)),
        "fpr": at_rate,
    }

"""phase2: the threshold that maximizes MCC on phase 1's VAL_CALIB scores, with its interval."""

import numpy as np

from streetvision.contracts.errors import DataError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import OperatingPoint, ThresholdInterval, ThresholdPolicy
from streetvision.contracts.split_contracts import Split
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import count_metrics, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import mcc_band, threshold_interval
from streetvision.eval.thresholds import (
    decide,
    plot_mcc_curve,
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
"""Thresholds at which the plot shows the interval of MCC."""


def run(context: Context) -> Outcome:
    """Write the policy with its operating points, and the sweep as a table and a plot."""
    schema, config, scores = context.schema, context.settings(Phase2Config), open_scores(context, Split.VAL_CALIB)
    threshold, mcc, metrics = select_threshold_max_mcc(
        scores.logits, scores.labels, config.n_thresholds, return_curve=True
    )
    curve = metrics["curve"]
    labels, p = scores.labels.numpy(), positive_probability(scores.logits.numpy())
    predictions = Predictions(labels, p, groups_of(context, scores))
    resampling = Resampling(config.n_resamples, seed=config.seed)
    low, high = threshold_interval(predictions, resampling)

    def operating_point(at: float) -> OperatingPoint:
        return OperatingPoint(threshold=at, metrics=count_metrics(confusion_counts(labels, decide(p, at))))

    try:
        fpr_point = operating_point(threshold_for_fpr(labels, p, config.target_fpr))
    except DataError:  # negatives of probability 1: a saturated model still has its other thresholds
        fpr_point = None
    policy = ThresholdPolicy(
        threshold=threshold,
        interval=ThresholdInterval(
            low=low,
            high=high,
            level=resampling.level,
            n_resamples=resampling.n_resamples,
            units=predictions.units.count,
        ),
        metrics={name: value for name, value in metrics.items() if name != "curve"},
        operating_points={
            "balanced": operating_point(threshold_for_prevalence(labels, p, 0.5)),
            "recall": operating_point(threshold_for_recall(labels, p, config.target_recall)),
            "fpr": fpr_point,
        },
        scores=scores.reference,
    )
    sweep_files = (schema.threshold_sweep_csv, schema.mcc_curve_plot)
    for path in sweep_files:
        path.unlink(missing_ok=True)  # of an earlier run
    if config.save_sweep_curve:
        band_thresholds = np.sort(np.append(np.linspace(0, 1, BAND_POINTS), threshold))
        band = mcc_band(predictions, band_thresholds, resampling)
        plot = plot_mcc_curve(metrics, threshold=threshold, band=band, threshold_interval=(low, high))
        write_text_atomic(schema.threshold_sweep_csv, sweep_csv(curve))
        write_bytes_atomic(schema.mcc_curve_plot, plot)
    write_json_atomic(schema.thresholds_json, policy.model_dump(mode="json"))
    where = "out-of-fold scores" if scores.out_of_fold else "VAL_CALIB"
    return Outcome(
        f"{threshold:.3f} [{low:.3f}, {high:.3f}], the highest MCC of {where}: {mcc:.3f} (optimistic; a grid of "
        f"{config.n_thresholds} thresholds: {metrics['grid_mcc']:.3f})",
        {"threshold": threshold, "val_calib_mcc": mcc},
        extra_outputs=sweep_files if config.save_sweep_curve else (),
    )

"""The pictures of an evaluation report: plots, and thumbnails of the mistakes."""

from pathlib import Path

import numpy as np

from streetvision.bundle.explain import draw_decisive
from streetvision.bundle.model import SINGLE_VIEW
from streetvision.bundle.predictor import Predictor
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.counts import confusion_counts
from streetvision.eval.report.contents import Report
from streetvision.eval.report.plots import confusion_matrix, pr_curve, reliability_diagram, roc_curve, threshold_curve
from streetvision.eval.stability import mcc_band
from streetvision.eval.thresholds import threshold_for_prevalence
from streetvision.pipeline.report_builder import EvaluationInput
from streetvision.pipeline.settings import EvaluationConfig

CURVE_POINTS = 201


def draw_plots(evaluation: EvaluationInput, config: EvaluationConfig) -> dict[str, bytes]:
    """The plots as PNG, by the names of their artifacts."""
    labels, shipped, positive = evaluation.labels, evaluation.shipped, evaluation.class_names[1]
    predictions, threshold = evaluation.predictions(shipped), shipped.threshold
    counts = confusion_counts(labels, shipped.decisions)
    plots = {
        "roc_curve": roc_curve(predictions, threshold=threshold, positive=positive),
        "pr_curve": pr_curve(predictions, threshold=threshold, positive=positive),
        "confusion_matrix": confusion_matrix(counts, class_names=evaluation.class_names),
        "reliability_diagram": reliability_diagram(
            predictions, positive=positive, resampling=evaluation.resampling(config)
        ),
    }
    if config.mode == "comprehensive":
        # The grid may miss the optimum and the shipped threshold, so both are added.
        # Images of one class have no optimum.
        optimum = [threshold_for_prevalence(labels, shipped.probabilities)] if len(np.unique(labels)) == 2 else []
        thresholds = np.unique([*np.linspace(0, 1, CURVE_POINTS), threshold, *optimum])
        band = mcc_band(predictions, thresholds, evaluation.resampling(config))
        plots["threshold_curve"] = threshold_curve(band, threshold=threshold)
    return plots


def draw_thumbnails(report: Report, root: Path, predictor: Predictor) -> dict[str, bytes]:
    """A small JPEG of each mistake, by its key in the report; with several views, the decisive ones are framed."""
    thumbnails = {}
    for mistake in report.get("mistakes", []):
        if "thumbnail" not in mistake:
            continue
        path = root / mistake["name"]
        if predictor.inference == SINGLE_VIEW:
            thumbnails[mistake["thumbnail"]] = thumbnail(path, predictor.limits)
        else:
            pixels = predictor.read_image(path)
            thumbnails[mistake["thumbnail"]] = draw_decisive(pixels, predictor.explain(path).views[1:])
    return thumbnails

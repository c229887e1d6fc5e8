"""The pictures of an evaluation: plots of the answers, and thumbnails of the mistakes."""

from pathlib import Path

import numpy as np

from streetvision.bundle.explain import draw_decisive
from streetvision.bundle.predictor import SINGLE_VIEW, Predictor
from streetvision.data.decode import read_image
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.counts import confusion_counts
from streetvision.eval.report.contents import Report
from streetvision.eval.report.plots import confusion_matrix, pr_curve, reliability_diagram, roc_curve, threshold_curve
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import mcc_band
from streetvision.eval.thresholds import threshold_for_prevalence
from streetvision.pipeline.report_builder import EvaluationInput
from streetvision.pipeline.settings import EvaluationConfig

CURVE_POINTS = 201


def draw_pictures(case: EvaluationInput, config: EvaluationConfig) -> dict[str, bytes]:
    """The plots of an evaluation as PNG, by the names of their artifacts."""
    labels, shipped, positive = case.labels, case.shipped, case.class_names[1]
    p, threshold = shipped.probabilities, shipped.threshold
    counts = confusion_counts(labels, shipped.decisions)
    pictures = {
        "roc_curve": roc_curve(labels, p, threshold=threshold, positive=positive),
        "pr_curve": pr_curve(labels, p, threshold=threshold, positive=positive),
        "confusion_matrix": confusion_matrix(counts, class_names=case.class_names),
        "reliability_diagram": reliability_diagram(labels, p, groups=case.groups, positive=positive),
    }
    if config.mode == "comprehensive":
        pictures["threshold_curve"] = _threshold_curve(case, config)
    return pictures


def _threshold_curve(case: EvaluationInput, config: EvaluationConfig) -> bytes:
    shipped = case.shipped
    best = threshold_for_prevalence(case.labels, shipped.probabilities)
    at = np.unique([*np.linspace(0, 1, CURVE_POINTS), shipped.threshold, best])
    how = Resampling(case.groups, config.n_resamples, config.confidence_level, config.seed)
    band = mcc_band(case.labels, shipped.probabilities, at, how)
    return threshold_curve(band, threshold=shipped.threshold)


def draw_thumbnails(report: Report, root: Path, predictor: Predictor) -> dict[str, bytes]:
    """Small JPEGs of the report's mistakes, by the key that each names; which views decided, where there are many."""
    return {
        mistake["thumbnail"]: _thumbnail(root / mistake["name"], predictor)
        for mistake in report.get("mistakes", [])
        if "thumbnail" in mistake
    }


def _thumbnail(path: Path, predictor: Predictor) -> bytes:
    if predictor.inference == SINGLE_VIEW:
        return thumbnail(path, predictor.limits)
    pixels = read_image(path, limits=predictor.limits)
    return draw_decisive(pixels, predictor.explain(pixels).views[1:])

"""The evaluation report as one HTML page, which opens offline and runs no script."""

import json
from collections.abc import Mapping

from streetvision.contracts.errors import DataError
from streetvision.eval.intervals import level_text
from streetvision.eval.metrics import METRICS
from streetvision.eval.report import contents
from streetvision.eval.report.contents import PolicyRow, Report, Slice
from streetvision.eval.report.html import environment, inline_image

PLOT_TITLES = {
    "confusion_matrix": "Confusion matrix",
    "reliability_diagram": "Calibration of the probabilities",
    "roc_curve": "Misses against false alarms",
    "pr_curve": "Precision against recall",
    "threshold_curve": "MCC at other thresholds",
}
"""Key of a plot -> its heading, in the order of the page."""

MEANINGS = {
    "mcc": "correlation of predictions and labels: 1 perfect, 0 no better than chance",
    "accuracy": "share of images with a correct prediction",
    "precision": "share of alarms that are correct",
    "recall": 'share of the images labeled "{positive}" that are found',
    "f1": "harmonic mean of precision and recall",
    "fnr": 'share of the images labeled "{positive}" that are missed',
    "fpr": "share of the other images with a false alarm",
    "roc_auc": 'probability that an image labeled "{positive}" ranks above another image',
    "pr_auc": "mean precision over all recalls",
    "ece": "mean difference of probability and frequency; a calibrated model: {low:.3f} to {high:.3f} on {data}",
    "brier": "mean squared error of the probabilities",
    "nll": "negative log-likelihood in nats: 0 perfect, 0.693 for a constant 0.5",
}
POLICY_MEANINGS = {
    "argmax": "the class with the larger logit",
    "threshold": "the softmax probability, with the threshold of highest MCC on VAL_CALIB",
    "scrc": "the calibrated probability, with the mean of the thresholds of highest MCC on resamples of VAL_CALIB",
}


def policy_title(policy: PolicyRow) -> str:
    """The name of a policy in the table: argmax is there twice if the model fuses views."""
    fused = policy["name"] == "argmax" and policy["inference"] != "single_view"
    return "argmax, fused" if fused else policy["name"]


def render_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page, from the report and its images (PNG, JPEG or WebP).

    Args:
        report: the content.
        pictures: key -> image: plots by the keys of PLOT_TITLES, thumbnails by the keys in the mistakes.

    Raises:
        DataError: an image has another format, or the thumbnail of a mistake is missing.
    """
    positive, (low, high) = report["class_names"][1], report["ece_band"]
    mistakes = []
    for mistake in report.get("mistakes", []):
        key = mistake.get("thumbnail")
        if key is not None and key not in pictures:
            raise DataError(f"the thumbnail {key!r} of {mistake['name']!r} is missing from the images", None)
        mistakes.append((mistake, "" if key is None else inline_image(pictures[key], alt=mistake["name"])))
    slices: dict[str, list[Slice]] = {}
    for part in report.get("slices", []):
        slices.setdefault(part["column"], []).append(part)
    policies = report.get("policies", [])
    selective = report.get("selective")
    template = environment().get_template("report.html.j2")
    return template.render(
        report=report,
        positive=positive,
        level=level_text(report["level"]),
        out_of_fold_level=level_text(report["out_of_fold"]["level"]) if "out_of_fold" in report else None,
        verdict=contents.verdict(report),
        lead=contents.lead(report),
        cautions=list(contents.cautions(report)),
        out_of_fold=report.get("out_of_fold"),
        metrics=[
            (
                name,
                METRICS[name].title,
                report["metrics"][name],
                MEANINGS[name].format(positive=positive, data=report["data"], low=low, high=high),
            )
            for name in METRICS
            if name in report["metrics"]
        ],
        policies=[(policy_title(policy), policy) for policy in policies],
        policy_meanings={policy["name"]: POLICY_MEANINGS[policy["name"]] for policy in policies},
        selective=selective and contents.selective_sentence(selective, contents.images(report["counts"])),
        plots=[
            (title, inline_image(pictures[key], alt=title)) for key, title in PLOT_TITLES.items() if key in pictures
        ],
        slices=slices,
        mistakes=mistakes,
        access_history=contents.access_history(report),
        settings=report["settings"] and json.dumps(report["settings"], indent=2, ensure_ascii=False),
        number=contents.number,
        interval=contents.interval,
        fraction=contents.fraction,
    )

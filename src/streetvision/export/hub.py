"""Export for the Hugging Face Hub: the unchanged bundle, and a model card with the metrics of its evaluation.

References:
    Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from streetvision.bundle.format import BUNDLE_JSON, Bundle, check_export_folder, read_bundle
from streetvision.calibration.config import UNCALIBRATED
from streetvision.contracts.policies import ScrcPolicy
from streetvision.eval.report.html import environment
from streetvision.io.atomic import open_atomic, write_text_atomic

BUNDLE_FOLDER = "bundle"
"""The bundle has its own folder next to the card, because a bundle with unexpected files is rejected."""
METRICS = ("mcc", "roc_auc", "accuracy", "recall", "precision", "fpr", "ece", "brier", "nll")
"""Metrics of the card, in this order."""


class ReportSection(BaseModel):
    """The part of evaluation_report.json that the card needs. Other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class MetricEstimate(ReportSection):
    """A metric with its interval; None where it is undefined."""

    estimate: float | None
    low: float | None
    high: float | None


class Provenance(ReportSection):
    """What was evaluated."""

    bundle: str
    """sha256 of bundle.json."""


class EvaluatedBundle(ReportSection):
    """The identity of the bundle in any evaluation_report.json."""

    provenance: Provenance


class EvaluationSummary(EvaluatedBundle):
    """The content of the card's evaluation section."""

    title: str
    data: str
    test_access: int | None
    level: float
    counts: dict[str, int]
    metrics: dict[str, MetricEstimate]
    notes: list[str]


@dataclass(frozen=True)
class Card:
    """Fields of the model card that the user sets. The others come from the bundle and its evaluation."""

    name: str
    license: str
    """A license identifier of the Hub, for example apache-2.0."""


def write_hub(bundle: Bundle, folder: Path, card: Card, report: EvaluationSummary | None) -> None:
    """Write README.md and a copy of the bundle to `folder`.

    Args:
        bundle: the bundle to export.
        folder: a new or empty folder.
        card: fields of the model card.
        report: the evaluation of this bundle; None: the card has no metrics.

    Raises:
        ConfigError: `folder` is not a new or empty folder, or is in the bundle.
    """
    check_export_folder(folder, bundle.folder)
    (folder / BUNDLE_FOLDER).mkdir(parents=True)
    try:
        for name in (*bundle.manifest.files, BUNDLE_JSON):
            with (bundle.folder / name).open("rb") as original, open_atomic(folder / BUNDLE_FOLDER / name) as copy:
                shutil.copyfileobj(original, copy)
        read_bundle(folder / BUNDLE_FOLDER)
        write_text_atomic(folder / "README.md", model_card(bundle, card, report))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder must not be uploaded
        raise


def model_card(bundle: Bundle, card: Card, report: EvaluationSummary | None) -> str:
    """Render README.md: metadata for the Hub as YAML front matter, then Markdown."""
    policy = bundle.manifest.policy
    calibrated = isinstance(policy, ScrcPolicy) and policy.scrc_params.calibrator.name != UNCALIBRATED
    metadata: dict[str, object] = {
        "license": card.license,
        "library_name": "streetvision",
        "pipeline_tag": "image-classification",
        "tags": ["streetvision", "image-classification", *(["calibrated"] if calibrated else [])],
    }
    metrics: dict[str, MetricEstimate] = {}
    if report is not None:
        metrics = {name: report.metrics[name] for name in METRICS if name in report.metrics}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": f"{report.title}, {report.data}", "type": "private"},
            "metrics": [
                {"type": name, "value": round(metric.estimate, 4)}
                for name, metric in metrics.items()
                if metric.estimate is not None
            ],
        }
        metadata["model-index"] = [{"name": card.name, "results": [result]}]
    policy = bundle.manifest.policy
    control = policy.scrc_params.risk_control if isinstance(policy, ScrcPolicy) else None
    return (
        environment("streetvision.export")
        .get_template("model_card.md.j2")
        .render(
            calibrated=calibrated,
            metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
            card=card,
            bundle_folder=BUNDLE_FOLDER,
            class_names=bundle.manifest.class_names,
            threshold=policy.scrc_params.threshold if isinstance(policy, ScrcPolicy) else policy.threshold,
            guarantee=control.reason if control is not None and control.certified else None,
            report=report,
            metrics=metrics,
            number=lambda value: "undefined" if value is None else f"{value:.3f}",
            versions=sorted(bundle.manifest.versions.items()),
        )
    )

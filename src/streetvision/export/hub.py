"""A folder for the Hugging Face hub: the bundle as it is, and a model card that says how it was judged."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.contracts.errors import ConfigError
from streetvision.io.atomic import write_text_atomic

BUNDLE_FOLDER = "bundle"
"""A bundle holds no stranger, so the card lies beside its folder."""
SHOWN = ("mcc", "roc_auc", "accuracy", "recall", "precision", "fpr", "ece", "brier", "nll")
"""Metrics of the table, in this order."""


class Shown(BaseModel):
    """A part of evaluation_report.json; the page shows more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ShownMetric(Shown):
    """A metric with its interval; None where it is not defined."""

    estimate: float | None
    low: float | None
    high: float | None


class JudgedBundle(Shown):
    """What was judged."""

    bundle: str
    """sha256 of bundle.json."""


class Judgement(Shown):
    """Any evaluation_report.json."""

    provenance: JudgedBundle


class ShownEvaluation(Judgement):
    """What a card shows of the bundle's own."""

    title: str
    data: str
    test_access: int | None
    level: float
    counts: dict[str, int]
    metrics: dict[str, ShownMetric]
    notes: list[str]


@dataclass(frozen=True)
class Card:
    """What a person says of the model; the rest is read from the bundle and its evaluation."""

    name: str
    license: str
    """An identifier that the hub knows, for example apache-2.0."""


def write_hub(bundle: Bundle, folder: Path, card: Card, report: ShownEvaluation | None) -> None:
    """Write the bundle into `folder`/bundle and README.md beside it; `report` is the bundle's own evaluation, if any.

    Raises ConfigError for a folder that holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{str(folder)!r} is not empty", "give a folder of its own: --out ...")
    (folder / BUNDLE_FOLDER).mkdir(parents=True)
    try:
        for name in (*bundle.manifest.files, BUNDLE_JSON):
            shutil.copyfile(bundle.folder / name, folder / BUNDLE_FOLDER / name)
        read_bundle(folder / BUNDLE_FOLDER)
        write_text_atomic(folder / "README.md", model_card(bundle, card, report))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half a folder must not be uploaded
        raise


def model_card(bundle: Bundle, card: Card, report: ShownEvaluation | None) -> str:
    """README.md: metadata as YAML between two rules, then Markdown."""
    metadata: dict[str, object] = {
        "license": card.license,
        "library_name": "streetvision",
        "pipeline_tag": "image-classification",
        "tags": ["streetvision", "image-classification", "calibrated"],
    }
    if report is not None:
        metadata["model-index"] = [{"name": card.name, "results": [_result(report)]}]
    first, second = bundle.manifest.class_names
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {card.name}",
        f"Says of a street image whether it shows **{second}** (1) or **{first}** (0), with a calibrated probability.",
        "## Use",
        _USE,
        "## Evaluation",
        _evaluation(report),
        "## Made with",
        "\n".join(f"- {name} {version}" for name, version in sorted(bundle.manifest.versions.items())),
    ]
    return "\n\n".join(parts) + "\n"


_USE = f"""```python
from huggingface_hub import snapshot_download
from streetvision import load_bundle

predictor = load_bundle(snapshot_download("OWNER/NAME") + "/{BUNDLE_FOLDER}")
for answer in predictor.predict(["street.jpg"]):
    print(answer.label, answer.probability, answer.certified)
```

Every file is checked by its sha256, and none is unpickled. A digest shows that a bundle is whole, not who made it."""


def _evaluation(report: ShownEvaluation | None) -> str:
    if report is None:
        return "No evaluation came with this bundle: nothing is known of how good it is."
    n = sum(report.counts.values())
    access = "" if report.test_access is None else f", test-set access {report.test_access}"
    rows = [
        f"| {name} | {_number(found.estimate)} | {_number(found.low)} to {_number(found.high)} |"
        for name in SHOWN
        if (found := report.metrics.get(name))
    ]
    return "\n".join(
        [
            f"On {n:,} images of {report.data} that had no part in making the model{access}; intervals at level "
            f"{report.level:g}.",
            "",
            "| metric | estimate | interval |",
            "|---|---|---|",
            *rows,
            *(f"\n{note}" for note in report.notes),
        ]
    )


def _result(report: ShownEvaluation) -> dict[str, object]:
    metrics = [
        {"type": name, "value": round(found.estimate, 4)}
        for name in SHOWN
        if (found := report.metrics.get(name)) and found.estimate is not None
    ]
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": f"{report.title}, {report.data}", "type": "private"},
        "metrics": metrics,
    }


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"

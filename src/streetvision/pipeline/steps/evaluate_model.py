"""evaluate: what the bundle answers on VAL_TEST, with an interval on every figure."""

import math
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context, Outcome, Phase
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.datamodule import LoaderConfig
from streetvision.eval.report import render_report
from streetvision.io.atomic import read_json, sha256_file, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.manifests import git_sha
from streetvision.pipeline.judgement import Judged, draw_pictures, draw_thumbnails, make_report, tell
from streetvision.pipeline.settings import EvaluationConfig


def run(context: Context) -> Outcome:
    """Ask the bundle about every row of VAL_TEST, and write figures, pictures and the page for people."""
    schema, bundle = context.schema, _bundle(context)
    rows = context.rows(Split.VAL_TEST)
    look = _record_look(context, bundle)
    limits = context.settings(LoaderConfig).limits
    predictor = Predictor(bundle, limits=limits)
    judged = Judged(
        rows,
        _ask(predictor, rows, context),
        threshold=predictor.threshold,
        class_names=bundle.manifest.class_names,
        title=schema.root.resolve().name,
        look=look,
        provenance=_provenance(bundle),
    )
    report, pictures = make_report(judged, context.settings(EvaluationConfig)), draw_pictures(judged)
    for name, png in pictures.items():
        write_bytes_atomic(schema.path(name), png)
    thumbnails = draw_thumbnails(report, context.data_root, limits)
    write_json_atomic(schema.evaluation_report, {**report, "summary": tell(report)})
    write_text_atomic(schema.report_html, render_report(report, pictures | thumbnails))
    return Outcome(
        f"{len(rows)} images of VAL_TEST, look {look}", {"n": len(rows), "mcc": report["metrics"]["mcc"]["estimate"]}
    )


def _provenance(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    return {
        "bundle": sha256_file(bundle.folder / BUNDLE_JSON),
        "model": manifest.files[manifest.model_checkpoint].sha256,
        "data": manifest.data_fingerprint,
        "policy": manifest.policy_type,
        "code": git_sha() or "not a checkout",
        **manifest.made_with,
    }


def _bundle(context: Context) -> Bundle:
    """The bundle to judge; raises ArtifactError when it was not made from this run's data."""
    bundle = read_bundle(context.settings(EvaluationConfig).bundle or context.schema.export)
    if bundle.manifest.data_fingerprint != context.fingerprint:
        raise ArtifactError(
            f"bundle {str(bundle.folder)!r} was made from data with fingerprint "
            f"{bundle.manifest.data_fingerprint[:12]}, and this run's is {context.fingerprint[:12]}",
            "its VAL_TEST may hold images that this bundle was trained on; name the run that made it: run_dir=...",
        )
    return bundle


def _record_look(context: Context, bundle: Bundle) -> int:
    """Note in the ledger that VAL_TEST is opened, before it is; returns the how-many-th time this is."""
    path = context.schema.looks
    looks = read_json(path) if path.is_file() else []
    if not isinstance(looks, list):
        raise ArtifactError(f"{str(path)!r} should hold a list of looks at VAL_TEST", "restore it from a backup")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    looks.append({"at": now, "bundle_sha256": sha256_file(bundle.folder / BUNDLE_JSON)})
    write_json_atomic(path, looks)
    return len(looks)


def _ask(predictor: Predictor, rows: tuple[Row, ...], context: Context) -> NDArray[np.float64]:
    """The bundle's probability (N,) for each row."""
    batch = context.settings(LoaderConfig).batch_size
    batches = predictor.stream((context.data_root / row.path for row in rows), batch_size=batch)
    total = math.ceil(len(rows) / batch)
    answers = [a for part in context.progress.track(batches, total=total, label="val_test") for a in part]
    return np.array([answer.probability for answer in answers])


def _judged_bundle(context: Context) -> str:
    """Digest of the bundle that is judged, wherever it lies."""
    folder = context.settings(EvaluationConfig).bundle or context.schema.export
    return sha256_file(folder / BUNDLE_JSON)


PHASE = Phase(
    id="evaluate",
    title="judge",
    config=(EvaluationConfig, LoaderConfig),
    needs=("splits",),
    makes=(
        "evaluation_report",
        "report_html",
        "roc_curve",
        "pr_curve",
        "confusion_matrix",
        "reliability_diagram",
    ),
    run=run,
    external=_judged_bundle,
)

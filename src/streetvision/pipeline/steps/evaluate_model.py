"""evaluate: what the bundle answers on VAL_TEST, or on another labelled data set, with an interval on every figure."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.bundle.predictor import SINGLE_VIEW, Predictor
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, LeakageError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import ThresholdPolicy
from streetvision.contracts.split_contracts import Partition, Row, Split
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.grouping.group_rows import group_rows
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.eval.metrics import positive_probability
from streetvision.eval.report.page import render_report
from streetvision.io.atomic import (
    read_json,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from streetvision.io.manifests import git_sha, read_manifest
from streetvision.io.predictions import PolicyPredictions, write_predictions
from streetvision.io.validators import PolicyValidator
from streetvision.models.fused import images_per_batch
from streetvision.pipeline.artifacts import REPORT
from streetvision.pipeline.report_builder import (
    DecisionRule,
    EvaluationInput,
    RiskGuarantee,
    make_report,
    report_lines_of_rules,
    summary_lines,
)
from streetvision.pipeline.report_images import draw_pictures, draw_thumbnails
from streetvision.pipeline.settings import EvaluationConfig
from streetvision.pipeline.steps.prepare_data import scan_data
from streetvision.pipeline.test_access_log import TestAccesses, record_test_access

ABOVE_HALF = float(np.nextafter(0.5, 1))
"""argmax takes class 0 when both logits are equal."""


@dataclass(frozen=True)
class Asked:
    """The images that a bundle is judged on."""

    rows: tuple[Row, ...]
    root: Path
    """Folder that relative row paths start from."""
    title: str
    data: str
    """VAL_TEST, or the data set that was given instead."""
    fingerprint: str
    looks: TestAccesses | None
    """None where VAL_TEST is not touched."""
    notes: list[str] = field(default_factory=list)


def run(context: Context) -> Outcome:
    """Ask the bundle about every row of VAL_TEST, and write figures, pictures and the page for people."""
    bundle = own_bundle(context, context.settings(EvaluationConfig).bundle)
    rows = context.rows(Split.VAL_TEST)
    asked = Asked(
        rows,
        context.data_root,
        title=context.schema.output_dir.resolve().name,
        data="VAL_TEST",
        fingerprint=context.fingerprint,
        looks=record_test_access(context.schema.test_access_log_json, _digest(bundle)),
    )
    return _judge(bundle, asked, context, home=context.schema)


def run_elsewhere(context: Context) -> Outcome:
    """Ask the bundle about every image of data.root, none of which may have had a part in making it."""
    bundle = _bundle(context)
    home = ArtifactSchema(bundle.folder.parent)
    index, _ = group_rows(scan_data(context), context.settings(DataConfig).grouping)
    made_from = _partition(home, bundle)
    looks, notes = None, []
    if made_from is None:
        notes.append("The images that made this bundle are not listed beside it: none could be looked for among these.")
    elif _shared_with_val_test(index.rows, made_from):
        looks = record_test_access(home.test_access_log_json, _digest(bundle))
    data = Path(str(context.settings(DataConfig).root)).expanduser().resolve().name
    asked = Asked(
        index.rows,
        index.root,
        title=f"{data}, judged by {bundle.folder.resolve().parent.name}",
        data=data,
        fingerprint=index.fingerprint,
        looks=looks,
        notes=notes,
    )
    return _judge(bundle, asked, context, home=home)


def _judge(bundle: Bundle, asked: Asked, context: Context, *, home: ArtifactSchema) -> Outcome:
    schema, config = context.schema, context.settings(EvaluationConfig)
    limits = context.settings(LoaderConfig).limits
    predictor = Predictor(bundle, limits=limits)
    threshold = _threshold_policy(home, bundle)
    if threshold is None and predictor.manifest.policy_type != "threshold":
        asked.notes.append("The table of policies leaves out phase 2's threshold: the run has none of this model.")
    logits, control = _ask(predictor, asked, context), predictor.risk_control
    plain = _ask(predictor.with_single_view(), asked, context) if _compares_views(predictor, config) else None
    case = EvaluationInput(
        asked.rows,
        _rulings(predictor, logits, threshold, plain=plain),
        promise=RiskGuarantee(control, predictor.certified(logits)) if control is not None else None,
        class_names=bundle.manifest.class_names,
        title=asked.title,
        data=asked.data,
        provenance=_provenance(bundle, asked, config),
        settings=_settings(home, bundle),
        many_views=predictor.inference != SINGLE_VIEW,
        look=asked.looks.number if asked.looks else None,
        earlier_looks=asked.looks.earlier if asked.looks else [],
        notes=asked.notes,
    )
    report, pictures = make_report(case, config), draw_pictures(case, config)
    schema.threshold_curve.unlink(missing_ok=True)
    for name, png in pictures.items():
        write_bytes_atomic(schema.path(name), png)
    write_predictions(
        schema.predictions_csv, (_answers(ruling, case) for ruling in report_lines_of_rules(case, config))
    )
    thumbnails = draw_thumbnails(report, asked.root, predictor)
    write_json_atomic(schema.evaluation_report_json, {**report, "summary": summary_lines(report)})
    write_text_atomic(schema.report_html, render_report(report, pictures | thumbnails))
    look = f", look {case.look}" if case.look else ""
    return Outcome(
        f"{len(asked.rows)} images of {asked.data}{look}",
        {"n": len(asked.rows), "mcc": report["metrics"]["mcc"]["estimate"]},
        extra_outputs=tuple(schema.path(name) for name in pictures if name not in REPORT),
    )


def _answers(ruling: DecisionRule, case: EvaluationInput) -> PolicyPredictions:
    paths, groups = [row.path for row in case.rows], [row.group for row in case.rows]
    how = (ruling.name, ruling.inference, ruling is case.shipped)
    return PolicyPredictions(*how, paths, case.labels, groups, ruling.probabilities, ruling.decisions)


def _ask(predictor: Predictor, asked: Asked, context: Context) -> Tensor:
    """The bundle's logits (N, 2) for each row."""
    batch = context.settings(LoaderConfig).batch_size
    batches = predictor.stream_logits((asked.root / row.path for row in asked.rows), batch_size=batch)
    total = math.ceil(len(asked.rows) / images_per_batch(predictor.model, batch))
    return torch.cat(list(context.progress.track(batches, total=total, label=asked.data.lower())))


def _compares_views(predictor: Predictor, config: EvaluationConfig) -> bool:
    return predictor.inference != SINGLE_VIEW and config.mode == "comprehensive"


def _rulings(
    predictor: Predictor, logits: Tensor, threshold: ThresholdPolicy | None, *, plain: Tensor | None
) -> tuple[DecisionRule, ...]:
    """argmax, phase 2's threshold where the run has it, both on single views, and last what the bundle does.

    Where the bundle fuses views, `plain` are the logits of single views, and argmax of the fused ones stands between.
    """
    p = positive_probability(logits.numpy())
    single = p if plain is None else positive_probability(plain.numpy())
    policy, inference = predictor.manifest.policy_type, predictor.inference
    shipped = DecisionRule(policy, predictor.probabilities(logits), predictor.threshold, inference)
    between = [DecisionRule("threshold", single, threshold.threshold)] if threshold and policy != "threshold" else []
    if plain is not None:
        between.append(DecisionRule("argmax", p, ABOVE_HALF, inference))
    return (DecisionRule("argmax", single, ABOVE_HALF), *between, shipped)


def _threshold_policy(home: ArtifactSchema, bundle: Bundle) -> ThresholdPolicy | None:
    """The threshold that phase 2 of the bundle's run chose for the bundle's model; None where there is none."""
    if not home.thresholds_json.is_file():
        return None
    policy = PolicyValidator().validate(home.thresholds_json)
    same = policy.scores.model_sha256 == bundle.manifest.policy.scores.model_sha256
    return policy if same and isinstance(policy, ThresholdPolicy) else None


def _provenance(bundle: Bundle, asked: Asked, config: EvaluationConfig) -> dict[str, str]:
    manifest, runtime = bundle.manifest, bundle.manifest.runtime
    return {
        "bundle": _digest(bundle),
        "model": manifest.files[manifest.model_checkpoint].sha256,
        **({} if runtime is None else {"runtime": f"{runtime.name} {runtime.precision}"}),
        "made from data": manifest.data_fingerprint,
        "judged on data": asked.fingerprint,
        "policy": manifest.policy_type,
        "intervals": f"{config.n_resamples} resamples, level {config.confidence_level:g}, seed {config.seed}",
        "code": git_sha() or "not a checkout",
        **manifest.versions,
    }


def _settings(home: ArtifactSchema, bundle: Bundle) -> dict[str, JsonValue]:
    """Phase -> its settings, of the run that made the bundle; empty where `home` is another run or none."""
    fusing = ("phase4c_cvfm",) if bundle.manifest.fusion_description else ()
    phases = ("data", "phase1", "phase2", *fusing, "phase5", "phase6")
    found = {phase: read_manifest(home.manifest(phase)) for phase in phases if home.manifest(phase).is_file()}
    model = bundle.manifest.files[bundle.manifest.model_checkpoint]
    made_it = "phase1" in found and model in found["phase1"].outputs.values()
    return {phase: dict(manifest.config) for phase, manifest in found.items()} if made_it else {}


def own_bundle(context: Context, given: Path | None) -> Bundle:
    """The bundle at `given`, or the run's; raises ArtifactError when it was not made from this run's data."""
    bundle = read_bundle(given or context.schema.export_dir)
    if bundle.manifest.data_fingerprint != context.fingerprint:
        raise ArtifactError(
            f"bundle {str(bundle.folder)!r} was made from data with fingerprint "
            f"{bundle.manifest.data_fingerprint[:12]}, and this run's is {context.fingerprint[:12]}",
            "its VAL_TEST may hold images that this bundle was trained on; name the run that made it: run_dir=...",
        )
    return bundle


def _partition(home: ArtifactSchema, bundle: Bundle) -> Partition | None:
    """The splits that the bundle was made from, if its run is around it."""
    if not home.splits_json.is_file():
        return None
    found = partition_from_json(read_json(home.splits_json), home.splits_json)
    return found if found.index.fingerprint == bundle.manifest.data_fingerprint else None


def _shared_with_val_test(rows: tuple[Row, ...], made_from: Partition) -> bool:
    """Whether rows are images of VAL_TEST; raises LeakageError when some are images of the other splits."""
    role_of = {row.sha256: role for row, role in zip(made_from.index.rows, made_from.roles, strict=True)}
    met = Counter(role_of[row.sha256] for row in rows if row.sha256 in role_of)
    seen = {role.value: count for role, count in met.items() if role is not Split.VAL_TEST}
    if seen:
        counts = ", ".join(f"{role} {count:,}" for role, count in sorted(seen.items()))
        raise LeakageError(
            f"{sum(seen.values()):,} of {len(rows):,} images had a part in making this bundle ({counts})",
            "take them out of the data, or judge the bundle on its VAL_TEST: leave out --data",
        )
    return Split.VAL_TEST in met


def _bundle(context: Context) -> Bundle:
    return read_bundle(context.settings(EvaluationConfig).bundle or context.schema.export_dir)


def _digest(bundle: Bundle) -> str:
    return sha256_file(bundle.folder / BUNDLE_JSON)

"""evaluate, evaluate_data: metrics of a bundle on VAL_TEST or on another labeled data set, each with an interval."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.bundle.model import SINGLE_VIEW, Logits
from streetvision.bundle.predictor import Predictor
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError, LeakageError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import FileDigest, OutOfFoldReport, ThresholdPolicy
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.grouping.seen_images import SEEN_IMAGES, parse_seen_images
from streetvision.data.image_file import UndecodableImage, read_recorded
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.eval.metrics import positive_probability
from streetvision.eval.report.page import render_report
from streetvision.io.atomic import (
    read_bytes,
    read_json,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from streetvision.io.manifests import file_digest, git_sha
from streetvision.io.predictions import PolicyPredictions, write_predictions
from streetvision.io.validators import PolicyValidator, validate_json
from streetvision.pipeline.artifacts import REPORT, gate_notes, manifests_of, open_bundle
from streetvision.pipeline.data.scan_data import left_out_warnings, scan_data
from streetvision.pipeline.report_builder import (
    DecisionRule,
    EvaluationInput,
    RiskGuarantee,
    make_report,
    summary_lines,
)
from streetvision.pipeline.report_images import draw_plots, draw_thumbnails
from streetvision.pipeline.settings import EvaluationConfig
from streetvision.pipeline.test_access_log import TestAccess, record_test_access

ABOVE_HALF = float(np.nextafter(0.5, 1))
"""Threshold of argmax, which takes class 0 when both logits are equal."""
MAX_NAMED = 3
"""Images that a message names."""


@dataclass(frozen=True)
class TestSet:
    """The images that a bundle is evaluated on."""

    rows: tuple[Row, ...]
    root: Path
    """Folder that relative row paths start from."""
    title: str
    name: str
    """VAL_TEST, or the name of another data set."""
    fingerprint: str
    access: TestAccess | None
    """None if no access to VAL_TEST is recorded."""
    uncounted_test_images: int = 0
    """Images of VAL_TEST of a run whose access log is not available."""
    notes: list[str] = field(default_factory=list)


def run(context: Context) -> Outcome:
    """Evaluate the bundle on VAL_TEST of its run."""
    bundle = open_bundle(context, context.settings(EvaluationConfig).bundle)
    rows = context.rows(Split.VAL_TEST)
    _check_unchanged(rows, context)
    test_set = TestSet(
        rows,
        context.data_root,
        title=context.schema.output_dir.resolve().name,
        name="VAL_TEST",
        fingerprint=context.fingerprint,
        access=record_test_access(context.schema.test_access_log_json, _digest(bundle)),
    )
    manifests = manifests_of(_files(context.schema, bundle), context.schema)
    test_set.notes.extend(gate_notes(context.schema, manifests))
    return _evaluate(bundle, test_set, context, home=context.schema, out_of_fold=_out_of_fold(context.schema, bundle))


def run_on_data(context: Context) -> Outcome:
    """Evaluate the bundle on data.root, which must not contain images that the bundle was made from."""
    bundle = read_bundle(context.settings(EvaluationConfig).bundle or context.schema.export_dir)
    home = ArtifactSchema(bundle.folder.parent)
    grouped = scan_data(context, with_hashes=True, one_class=True)
    index, hashes = grouped.index, grouped.scan.hashes
    role_of = _roles_by_digest(home, bundle)
    access, notes = None, [f"{warning}." for warning in left_out_warnings(grouped.scan, context.settings(DataConfig))]
    overlap: dict[int, Split] = {}
    if role_of is not None:
        overlap = {i: role_of[row.sha256] for i, row in enumerate(index.rows) if row.sha256 in role_of}
        _refuse_used(overlap, index.rows, kind="")
    if SEEN_IMAGES in bundle.manifest.files:
        assert hashes is not None, "they were requested"
        copies = parse_seen_images(read_bytes(bundle.folder / SEEN_IMAGES)).find_copies(hashes)
        _refuse_used(copies, index.rows, kind="are copies of images that ")
        overlap |= copies
    elif role_of is None:
        notes.append(
            "The run of this bundle is missing, or has another split now: overlap with its training images could not "
            "be checked."
        )
    else:
        notes.append("Copies of this bundle's training images, such as resized ones, could not be recognised.")
    uncounted = 0
    if tested := sum(role is Split.VAL_TEST for role in overlap.values()):  # the same images under another name
        if role_of is not None:
            access = record_test_access(home.test_access_log_json, _digest(bundle))
        else:
            uncounted = tested
            notes.append(
                f"{tested:,} of these images are VAL_TEST of the run that made the bundle, whose log is not available: "
                "this access is not counted."
            )
    name = Path(str(context.settings(DataConfig).root)).resolve().name
    test_set = TestSet(
        index.rows,
        index.root,
        title=f"{name}, evaluated with {bundle.folder.resolve().parent.name}",
        name=name,
        fingerprint=index.fingerprint,
        access=access,
        uncounted_test_images=uncounted,
        notes=notes,
    )
    return _evaluate(bundle, test_set, context, home=home)


def _check_unchanged(rows: Sequence[Row], context: Context) -> None:
    """Raise DataError with the names of the images that are missing, or have changed since the data was split."""
    limits, differing = context.settings(LoaderConfig).limits, list[UndecodableImage]()
    for row in context.progress.track(rows, total=len(rows), label="compare"):
        try:
            read_recorded(context.data_root, row, limits=limits)
        except UndecodableImage as error:
            differing.append(error)
    if differing:
        more = f"; and {len(differing) - MAX_NAMED:,} more" if len(differing) > MAX_NAMED else ""
        raise DataError(
            f"{len(differing):,} of {len(rows):,} images of VAL_TEST differ from those of the run: "
            f"{'; '.join(error.message for error in differing[:MAX_NAMED])}{more}",
            differing[0].hint,
        )


def _refuse_used(overlap: Mapping[int, Split], rows: Sequence[Row], *, kind: str) -> None:
    """Raise LeakageError if images of another split than VAL_TEST are among the evaluated rows.

    `overlap` has the positions of the rows in question, with the split of the image in the bundle's run.
    """
    used = {rows[position].path: role.value for position, role in overlap.items() if role is not Split.VAL_TEST}
    if used:
        counts = ", ".join(f"{role} {count:,}" for role, count in sorted(Counter(used.values()).items()))
        more = f" and {len(used) - MAX_NAMED:,} more" if len(used) > MAX_NAMED else ""
        raise LeakageError(
            f"{len(used):,} of {len(rows):,} images {kind}were used to make this bundle ({counts}): "
            f"{', '.join(list(used)[:MAX_NAMED])}{more}",
            "remove them from the data, or leave out --data to evaluate on VAL_TEST",
        )


def _evaluate(
    bundle: Bundle,
    test_set: TestSet,
    context: Context,
    *,
    home: ArtifactSchema,
    out_of_fold: OutOfFoldReport | None = None,
) -> Outcome:
    """Predict the test set, and write predictions, plots and the report. `home` is the run around the bundle."""
    schema, config = context.schema, context.settings(EvaluationConfig)
    limits = context.settings(LoaderConfig).limits
    (predictor,) = context.progress.track((Predictor(bundle, limits=limits) for _ in range(1)), total=1, label="load")
    threshold = _threshold_policy(home, bundle)
    if threshold is None and predictor.manifest.policy_type != "threshold":
        test_set.notes.append("Phase 2's threshold is not compared: the run has none for this model.")
    logits, single_view_logits = _predict(predictor, test_set, context), None
    if predictor.inference != SINGLE_VIEW and config.mode == "comprehensive":
        single_view_logits = _predict(predictor.with_single_view(), test_set, context)
    control, access = predictor.risk_control, test_set.access
    evaluation = EvaluationInput(
        test_set.rows,
        _decision_rules(predictor, logits, threshold, single_view_logits=single_view_logits),
        guarantee=None if control is None else RiskGuarantee(control, predictor.certified(logits)),
        class_names=bundle.manifest.class_names,
        title=test_set.title,
        data=test_set.name,
        provenance=_provenance(bundle, test_set, config),
        settings=_run_settings(home, bundle),
        out_of_fold=out_of_fold,
        searched=home.search_best_yaml.is_file(),
        many_views=predictor.inference != SINGLE_VIEW,
        test_access=access.number if access else None,
        earlier_test_accesses=access.earlier if access else [],
        uncounted_test_images=test_set.uncounted_test_images,
        notes=test_set.notes,
    )
    report, plots = make_report(evaluation, config, context.progress), draw_plots(evaluation, config)
    schema.threshold_curve.unlink(missing_ok=True)  # of an earlier comprehensive evaluation
    for name, png in plots.items():
        write_bytes_atomic(schema.path(name), png)
    paths, groups = [row.path for row in test_set.rows], [row.group for row in test_set.rows]
    write_predictions(
        schema.predictions_csv,
        (
            PolicyPredictions(
                rule.name,
                rule.inference,
                rule is evaluation.shipped,
                paths,
                evaluation.labels,
                groups,
                rule.probabilities,
                rule.decisions,
            )
            for rule in evaluation.reported_rules(config)
        ),
    )
    thumbnails = draw_thumbnails(report, test_set.root, predictor)
    write_json_atomic(schema.evaluation_report_json, {**report, "summary": summary_lines(report)})
    write_text_atomic(schema.report_html, render_report(report, plots | thumbnails))
    number = f", access {access.number}" if access else ""
    mcc = report["metrics"]["mcc"]["estimate"]
    return Outcome(
        f"{len(test_set.rows)} images of {test_set.name}{number}",
        {"n": len(test_set.rows), "mcc": mcc},
        extra_outputs=tuple(schema.path(name) for name in plots if name not in REPORT),
    )


def _predict(predictor: Predictor, test_set: TestSet, context: Context) -> Logits:
    """Logits (N, 2)."""
    batch_size = context.settings(LoaderConfig).batch_size
    images = (read_recorded(test_set.root, row, limits=predictor.limits) for row in test_set.rows)
    batches = predictor.stream_logits(images, batch_size=batch_size)
    total = math.ceil(len(test_set.rows) / predictor.images_per_batch(batch_size))
    return np.concatenate(list(context.progress.track(batches, total=total, label=test_set.name.lower())))


def _decision_rules(
    predictor: Predictor, logits: Logits, threshold: ThresholdPolicy | None, *, single_view_logits: Logits | None
) -> tuple[DecisionRule, ...]:
    """The baseline argmax, phase 2's threshold if there is one, and last the policy of the bundle.

    If the bundle fuses views, the first two use the single view, and argmax of the fused logits is added.
    """
    p = positive_probability(logits)
    single_view_p = p if single_view_logits is None else positive_probability(single_view_logits)
    policy, inference = predictor.manifest.policy_type, predictor.inference
    rules = [DecisionRule("argmax", single_view_p, ABOVE_HALF)]
    if threshold is not None and policy != "threshold":
        rules.append(DecisionRule("threshold", single_view_p, threshold.threshold))
    if single_view_logits is not None:
        rules.append(DecisionRule("argmax", p, ABOVE_HALF, inference))
    return (*rules, DecisionRule(policy, predictor.probabilities(logits), predictor.threshold, inference))


def _threshold_policy(home: ArtifactSchema, bundle: Bundle) -> ThresholdPolicy | None:
    """Phase 2's threshold for the bundle's model; None if the run has none."""
    if not home.thresholds_json.is_file():
        return None
    policy = PolicyValidator().validate(home.thresholds_json)
    same_model = policy.scores.model_sha256 == bundle.manifest.policy.scores.model_sha256
    return policy if same_model and isinstance(policy, ThresholdPolicy) else None


def _out_of_fold(home: ArtifactSchema, bundle: Bundle) -> OutOfFoldReport | None:
    """The out-of-fold figures of the bundle's scores and policy; None if the run has none for them."""
    # The figures are of the calibrated policy.
    if bundle.manifest.policy_type != "scrc" or not home.out_of_fold_json.is_file():
        return None
    record = validate_json(home.out_of_fold_json, OutOfFoldReport)
    return record if record.scores == bundle.manifest.policy.scores else None


def _provenance(bundle: Bundle, test_set: TestSet, config: EvaluationConfig) -> dict[str, str]:
    manifest, runtime = bundle.manifest, bundle.manifest.runtime
    return {
        "bundle": _digest(bundle),
        "model": manifest.files[manifest.model_checkpoint].sha256,
        **({} if runtime is None else {"runtime": f"{runtime.name} {runtime.precision}"}),
        "training data": manifest.data_fingerprint,
        "evaluation data": test_set.fingerprint,
        "policy": manifest.policy_type,
        "intervals": f"{config.n_resamples} resamples, level {config.confidence_level:g}, seed {config.seed}",
        "code": git_sha() or "not a git checkout",
        **manifest.versions,
    }


def _run_settings(home: ArtifactSchema, bundle: Bundle) -> dict[str, JsonValue]:
    """Phase -> settings of the run that made the bundle; empty if `home` is not that run."""
    manifests = manifests_of(_files(home, bundle), home)
    return {phase: dict(manifest.config) for phase, manifest in manifests.items()} if "phase1" in manifests else {}


def _files(home: ArtifactSchema, bundle: Bundle) -> list[FileDigest]:
    """The files of the bundle, and phase 2's threshold if it is compared."""
    files = [file_digest(bundle.folder / BUNDLE_JSON), *bundle.manifest.files.values()]
    return files if _threshold_policy(home, bundle) is None else [*files, file_digest(home.thresholds_json)]


def _roles_by_digest(home: ArtifactSchema, bundle: Bundle) -> dict[str, Split] | None:
    """Image digest -> split of the run that made the bundle; None if `home` is not that run, or was split again."""
    if not home.splits_json.is_file():
        return None
    partition = partition_from_json(read_json(home.splits_json), home.splits_json)
    same_data = partition.index.fingerprint == bundle.manifest.data_fingerprint
    if not same_data or bundle.manifest.split_sha256 not in (None, partition.split_sha256):
        return None
    return {row.sha256: role for row, role in zip(partition.index.rows, partition.roles, strict=True)}


def _digest(bundle: Bundle) -> str:
    return sha256_file(bundle.folder / BUNDLE_JSON)

"""The artifacts that a phase reads under its settings, and digests of its inputs from outside the run folder.

The engine calls these functions before every phase, so nothing here loads torch or SciPy.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

from streetvision.bundle.format import BUNDLE_JSON, Bundle, read_bundle
from streetvision.calibration.config import MAC_CAL, Phase5Config
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import FileDigest, Gate
from streetvision.data.config import DataConfig
from streetvision.data.grouping.name_pattern import apply_patterns, groups_by_name
from streetvision.data.labels.decisions import LabeledImage
from streetvision.data.labels.listing import Labels, add_labels, labels_path, read_labels
from streetvision.data.records import ImageListing, ImageRecord
from streetvision.data.sources.discovery import is_dataset, list_images, list_unlabeled
from streetvision.io.atomic import sha256_file, sha256_json
from streetvision.io.manifests import StepManifest, file_digest, read_manifest, relative
from streetvision.io.validators import validate_json
from streetvision.models.backbone import local_files
from streetvision.models.config import ModelConfig
from streetvision.pipeline.settings import EvaluationConfig, Phase6Config, RewardConfig
from streetvision.training.config import CvfmConfig

SCORES = ("val_calib_logits", "val_calib_labels", "val_calib_scores_json", "splits_json")
MAC_CAL_SCORES = ("mac_cal_logits", "mac_cal_labels", "mac_cal_scores_json", "splits_json")
CVFM_SCORES = ("cvfm_logits", "cvfm_labels", "cvfm_scores_json", "splits_json")
"""Artifact names of VAL_CALIB scores: of phase 1, of the retrained head, of the fused views."""
REPORT = (
    "evaluation_report_json",
    "predictions_csv",
    "report_html",
    "roc_curve",
    "pr_curve",
    "confusion_matrix",
    "reliability_diagram",
)
"""Artifacts of every evaluation."""
MADE_BY = {
    "data": "splits_json",
    "phase4a_explora": "explora_checkpoint",
    "phase1": "phase1_checkpoint",
    "phase2": "thresholds_json",
    "phase4c_cvfm": "cvfm_config_json",
    "phase5_maccal": "mac_cal_checkpoint",
    "phase5": "scrc_params_json",
    "phase6": "bundle_json",
}
"""Phase -> the artifact by which its result is recognized, in the order of the data flow."""
POLICY_ARTIFACTS = {
    "scrc": ("scrc_params_json", "scrc_params_pkl"),
    "threshold": ("thresholds_json",),
}
"""Policy type -> its artifacts; the first is the policy itself."""


def adapted_backbone(context: Context) -> Path | None:
    """Checkpoint of the adapted backbone that training starts from: of another run or of this one."""
    config = context.settings(ModelConfig)
    own = context.schema.explora_checkpoint if config.init_from_explora else None
    return config.explora_checkpoint_path or own


def starts_adapted(context: Context) -> bool:
    """Whether training starts from adapted weights, and not from those that the gate of phase 4a kept."""
    path, gate = adapted_backbone(context), context.schema.adaptation_gate_json
    if path is None or path != context.schema.explora_checkpoint:
        return path is not None
    return validate_json(gate, Gate).ships


def manifests_of(files: Collection[FileDigest], schema: ArtifactSchema) -> dict[str, StepManifest]:
    """Phase -> its manifest in a run, for the phases that made `files` or what these were made from.

    A phase that has run again with another result is not among them.
    """
    needed, found = set(files), dict[str, StepManifest]()
    for phase, artifact in reversed(MADE_BY.items()):
        path, name = schema.manifest(phase), relative(schema.path(artifact), schema.output_dir)
        if path.is_file() and (manifest := read_manifest(path)).outputs.get(name) in needed:
            found[phase] = manifest
            needed |= set(manifest.inputs.values())
    return {phase: found[phase] for phase in MADE_BY if phase in found}


def gate_notes(schema: ArtifactSchema, manifests: Mapping[str, StepManifest]) -> list[str]:
    """The decisions of the gates that the phases with these manifests followed or made, one sentence each."""
    notes = []
    for phase, path, stage in (
        ("phase1", schema.adaptation_gate_json, "The adaptation of the backbone"),
        ("phase1", schema.augmentation_gate_json, "The augmentation"),
        ("phase1", schema.finetuning_gate_json, "Fine-tuning"),
        ("phase5", schema.fusion_gate_json, "The fusion of views"),
    ):
        if phase not in manifests:
            continue
        manifest, name = manifests[phase], relative(path, schema.output_dir)
        recorded = manifest.inputs.get(name, manifest.outputs.get(name))
        if recorded is not None and path.is_file() and recorded == file_digest(path):
            gate = validate_json(path, Gate)
            notes.append(f"{stage} is {'kept' if gate.ships else 'left out'}: {gate.reason}.")
    return notes


def adapted_checkpoint_inputs(context: Context) -> tuple[str, ...]:
    """The adapted backbone, if training starts from the one of this run."""
    own = adapted_backbone(context) == context.schema.explora_checkpoint
    return ("explora_checkpoint", "adaptation_gate_json") if own else ()


def weights_digest(context: Context) -> str:
    """Digest of the weight files outside the run folder that training starts from."""
    return digest_of_weights(context.settings(ModelConfig))


def digest_of_weights(config: ModelConfig) -> str:
    """Digest of the local weight files that a model starts from."""
    digests = {path.name: sha256_file(path) for path in local_files(config.backbone)}
    if config.explora_checkpoint_path is not None:
        digests["adapted"] = sha256_file(config.explora_checkpoint_path)
    return sha256_json(digests)


def unlabeled_inputs(context: Context) -> tuple[str, ...]:
    """The list of unlabeled images, if the data of the run has any."""
    data, unlabeled = (
        context.schema.manifest("data"),
        relative(context.schema.unlabeled_json, context.schema.output_dir),
    )
    return ("unlabeled_json",) if data.is_file() and unlabeled in read_manifest(data).outputs else ()


def fuses(context: Context) -> bool:
    """Whether phase 5 calibrates fused scores of several views: phase 4c is set, and its gate ships the fusion."""
    if context.settings(CvfmConfig).mode == "single_view":
        return False
    gate = context.schema.fusion_gate_json
    return not gate.is_file() or validate_json(gate, Gate).ships


def served_score_inputs(context: Context) -> tuple[str, ...]:
    """The scores that phase 5 calibrates, if they are not those of phase 1."""
    if context.settings(CvfmConfig).mode != "single_view":
        return (*((*CVFM_SCORES, "cvfm_config_json") if fuses(context) else ()), "fusion_gate_json")
    return (*MAC_CAL_SCORES, "mac_cal_checkpoint") if context.settings(Phase5Config).method == MAC_CAL else ()


def export_inputs(context: Context) -> tuple[str, ...]:
    """The artifacts of the exported policy, the hashes of the images, the heads of the folds, and the reference."""
    schema = context.schema
    seen = ("seen_images",) if schema.seen_images.is_file() else ()
    phase1 = schema.manifest("phase1")
    heads = relative(schema.fold_heads, schema.output_dir)
    folds = ("fold_heads",) if phase1.is_file() and heads in read_manifest(phase1).outputs else ()
    reference = ("monitoring_reference",) if context.settings(Phase6Config).policy == "scrc" else ()
    return (*POLICY_ARTIFACTS[context.settings(Phase6Config).policy], *seen, *folds, *reference)


def threshold_inputs(context: Context) -> tuple[str, ...]:
    """Phase 2's threshold, with which an evaluation compares, if the run has one."""
    return ("thresholds_json",) if context.schema.manifest("phase2").exists() else ()


def evaluated_bundle_digest(context: Context) -> str:
    """Digest of the bundle to evaluate, independent of its location."""
    return _bundle_digest(context.settings(EvaluationConfig).bundle, context)


def evaluated_data_digest(context: Context) -> str:
    """Digest of the bundle, of the artifacts of its run that are read, and of the data set."""
    home = ArtifactSchema((context.settings(EvaluationConfig).bundle or context.schema.export_dir).parent)
    run_digests = [sha256_file(path) if path.is_file() else "" for path in (home.splits_json, home.thresholds_json)]
    return sha256_json([evaluated_bundle_digest(context), *run_digests, data_digest(context)])


def rewarded_bundle_digest(context: Context) -> str:
    """Digest of the bundle whose reward is simulated, independent of its location."""
    return _bundle_digest(context.settings(RewardConfig).bundle, context)


def _bundle_digest(folder: Path | None, context: Context) -> str:
    return sha256_file((folder or context.schema.export_dir) / BUNDLE_JSON)


def open_bundle(context: Context, folder: Path | None) -> Bundle:
    """The bundle in `folder`, or in the run folder if that is None.

    Raises:
        ArtifactError: The bundle was not made from the data and the split of this run.
    """
    bundle = read_bundle(folder or context.schema.export_dir)
    if bundle.manifest.data_fingerprint != context.fingerprint:
        raise ArtifactError(
            f"bundle {str(bundle.folder)!r} was made from data with fingerprint "
            f"{bundle.manifest.data_fingerprint[:12]}, but this run has {context.fingerprint[:12]}: "
            "its VAL_TEST may contain training images of this bundle",
            "set run_dir=... to the run that made the bundle",
        )
    if bundle.manifest.split_sha256 != context.split_sha256:
        raise ArtifactError(
            f"bundle {str(bundle.folder)!r} was made from another split of the data of this run: "
            "its training images may be in VAL_TEST of this run",
            "set run_dir=... to the run that made the bundle; a bundle of an earlier version needs phase6 again",
        )
    return bundle


def data_digest(context: Context) -> str:
    """Digest of the listed files with their sizes and times; a name on the Hugging Face hub counts as itself."""
    config = context.settings(DataConfig)
    root = Path(_root(config))
    if config.labels is not None and str(root) == str(config.labels):
        labeled = ""
    elif not root.exists():
        labeled = sha256_json(config.root)
    elif is_dataset(str(root), config.class_names):
        labeled = sha256_json([_file_stamp(path) for path in sorted(root.rglob("*"))])
    else:
        listing = list_data(context, one_class=True)
        labeled = sha256_json(_image_stamps(listing.root, listing.images))
    if config.labels is not None:
        # A label may also replace one of data.root.
        images = read_labels(config.labels, config.class_names).images.values()
        stamps = _image_stamps(Path("/"), [ImageRecord(image.path, image.label) for image in images])
        labeled = sha256_json([labeled, sha256_file(labels_path(config.labels)), stamps])
    if not config.unlabeled:
        return labeled
    return sha256_json([labeled, _image_stamps(Path("/"), list_unlabeled(config.unlabeled).images)])


def _image_stamps(root: Path, images: Sequence[ImageRecord]) -> list[list[object]]:
    return [[*astuple(image), *_file_stamp(root / image.path)] for image in images]


def _file_stamp(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # a missing file or an invalid name: the scan reports it
        return [str(path)]
    return [path.name, status.st_size, status.st_mtime_ns]


def list_data(context: Context, *, one_class: bool = False, labels: Labels | None = None) -> ImageListing:
    """Every image in data.root, and those of `labels`; with `one_class`, images of one class alone are accepted."""
    config = context.settings(DataConfig)
    if labels is not None and config.labels is not None and _root(config) == str(config.labels):
        listing = ImageListing(Path("/"), ())
    else:
        listing = list_root(config, context.schema.imported_dir, one_class=one_class)
    if labels is None:
        return apply_patterns(listing, config)
    # The group of a labeled image was recorded with its label: it was matched below the folder of --images.
    listing = add_labels(apply_group_pattern(listing, labels.images.values(), config), labels)
    ungrouped = sum(image.queue is not None and image.group is None for image in listing.images)
    if config.group_pattern is not None and ungrouped:
        warning = (
            f"{ungrouped:,} images of data.labels have no group: data.group_pattern takes effect on them when they are "
            "labeled or imported"
        )
        listing = replace(listing, warnings=(*listing.warnings, warning))
    return apply_patterns(listing, config.model_copy(update={"group_pattern": None}))


def apply_group_pattern(
    listing: ImageListing, others: Iterable[ImageRecord | LabeledImage], config: DataConfig
) -> ImageListing:
    """Return the listing of data.root with groups by data.group_pattern.

    If the pattern matches no image of it, this is a warning if any of `others`, which are listed elsewhere, has a
    group; else it is a DataError.
    """
    pattern, names = config.group_pattern, [image.path for image in listing.images]
    grouped = any(image.group for image in others)
    if pattern is not None and names and grouped and not any(groups_by_name(names, pattern)):
        warning = f"data.group_pattern {pattern!r} matches no image of data.root, for example not {names[0]!r}"
        return replace(listing, warnings=(*listing.warnings, warning))
    return apply_patterns(listing, config.model_copy(update={"source_pattern": None}))


def list_root(config: DataConfig, import_to: Path, *, one_class: bool = False) -> ImageListing:
    """Every image in data.root; `import_to` and `one_class` as for `list_images`."""
    return list_images(
        _root(config),
        class_names=config.class_names,
        import_to=import_to,
        hf_split=config.hf_split,
        group_column=config.group_column,
        source_column=config.source_column,
        coco=config.coco,
        one_class=one_class,
    )


def _root(config: DataConfig) -> str:
    if config.root is None:
        raise ConfigError("data.root is not set", "set data.root=FOLDER")
    return config.root

"""Which artifacts a phase reads and writes where its settings decide, and the digest of what it reads outside the run.

The engine asks before every phase, to tell whether it need run at all: nothing here loads torch or SciPy.
"""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from streetvision.bundle.format import BUNDLE_JSON
from streetvision.calibration.config import MAC_CAL, Phase5Config
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context
from streetvision.data.config import DataConfig
from streetvision.data.records import Listed, Listing
from streetvision.data.sources.data_root import list_images, list_unlabeled
from streetvision.data.sources.huggingface import is_local_dataset
from streetvision.io.atomic import sha256_file, sha256_json
from streetvision.models.backbone import local_files
from streetvision.models.config import ModelConfig
from streetvision.pipeline.settings import EvaluationConfig, Phase6Config, RewardConfig
from streetvision.training.config import CvfmConfig

SCORES = ("val_calib_logits", "val_calib_labels", "val_calib_scores_json", "splits_json")
MAC_CAL_SCORES = ("mac_cal_logits", "mac_cal_labels", "mac_cal_scores_json", "splits_json")
CVFM_SCORES = ("cvfm_logits", "cvfm_labels", "cvfm_scores_json", "splits_json")
"""Names of artifacts: the scores of VAL_CALIB by phase 1, by the retrained head, by the fusion."""
REPORT = (
    "evaluation_report_json",
    "predictions_csv",
    "report_html",
    "roc_curve",
    "pr_curve",
    "confusion_matrix",
    "reliability_diagram",
)
"""What every evaluation writes."""
POLICY_ARTIFACTS = {
    "scrc": ("scrc_params_json", "scrc_params_pkl"),
    "threshold": ("thresholds_json",),
}


def adapted_backbone(context: Context) -> Path | None:
    """The checkpoint of an adapted backbone that the settings name: another run's, or this run's own."""
    config = context.settings(ModelConfig)
    own = context.schema.explora_checkpoint if config.init_from_explora else None
    return config.explora_checkpoint_path or own


def adapted_checkpoint_inputs(context: Context) -> tuple[str, ...]:
    """The artifacts of this run that training starts from."""
    return ("explora_checkpoint",) if adapted_backbone(context) == context.schema.explora_checkpoint else ()


def digest_of_weights(context: Context) -> str:
    """Digest of the weight files outside the run that training starts from."""
    config = context.settings(ModelConfig)
    files = [*local_files(config.backbone)]
    digests = {path.name: sha256_file(path) for path in files}
    if config.explora_checkpoint_path is not None:
        digests["adapted"] = sha256_file(config.explora_checkpoint_path)
    return sha256_json(digests)


def unlabelled_images(context: Context) -> tuple[str, ...]:
    """The list of images that phase 4a sees beside TRAIN, where there are any."""
    return ("unlabeled_json",) if context.settings(DataConfig).unlabeled else ()


def fuses(context: Context) -> bool:
    """Whether the fused scores of many views are what is calibrated."""
    return context.settings(CvfmConfig).mode != "single_view"


def served_scores(context: Context) -> tuple[str, ...]:
    """The scores that are calibrated, where they are not phase 1's."""
    if fuses(context):
        return CVFM_SCORES
    return MAC_CAL_SCORES if context.settings(Phase5Config).method == MAC_CAL else ()


def policy_artifacts(context: Context) -> tuple[str, ...]:
    """The policy that ships."""
    return POLICY_ARTIFACTS[context.settings(Phase6Config).policy]


def judged_bundle(context: Context) -> str:
    """Digest of the bundle that is judged, wherever it lies."""
    return _digest_of_bundle(context.settings(EvaluationConfig), context)


def judged_data(context: Context) -> str:
    """Digest of the bundle, of what is read of the run around it, and of the data set."""
    home = ArtifactSchema((context.settings(EvaluationConfig).bundle or context.schema.export_dir).parent)
    beside = [sha256_file(path) if path.is_file() else "" for path in (home.splits_json, home.thresholds_json)]
    return sha256_json([judged_bundle(context), *beside, digest_of_data(context)])


def optional_thresholds(context: Context) -> tuple[str, ...]:
    """The threshold of phase 2, which an evaluation compares with, where the run has one."""
    return ("thresholds_json",) if context.schema.manifest("phase2").exists() else ()


def rewarded_bundle(context: Context) -> str:
    """Digest of the bundle whose reward is simulated, wherever it lies."""
    return _digest_of_bundle(context.settings(RewardConfig), context)


def _digest_of_bundle(config: EvaluationConfig | RewardConfig, context: Context) -> str:
    return sha256_file((config.bundle or context.schema.export_dir) / BUNDLE_JSON)


def digest_of_data(context: Context) -> str:
    """Digest of the data set as it lies there: what is listed, with sizes and times; a hub name stands for itself."""
    labelled, sources = _digest_of_labelled(context), context.settings(DataConfig).unlabeled
    return sha256_json([labelled, _stamps(Path("/"), list_unlabeled(sources).images)]) if sources else labelled


def _digest_of_labelled(context: Context) -> str:
    root = Path(_root(context.settings(DataConfig))).expanduser()
    if not root.exists():
        return sha256_json(context.settings(DataConfig).root)
    if is_local_dataset(root):
        return sha256_json([_stamp(path) for path in sorted(root.rglob("*"))])
    listing = list_data(context)
    return sha256_json(_stamps(listing.root, listing.images))


def _stamps(root: Path, images: Sequence[Listed]) -> list[list[object]]:
    return [[*astuple(image), *_stamp(root / image.path)] for image in images]


def _stamp(path: Path) -> list[str | int]:
    """What changes when a file does; one that is not there, or cannot be, is for the scan to name."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return [str(path)]
    return [path.name, found.st_size, found.st_mtime_ns]


def list_data(context: Context) -> Listing:
    """Every image that data.root names."""
    config = context.settings(DataConfig)
    return list_images(
        _root(config),
        class_names=config.class_names,
        import_to=context.schema.imported_dir,
        hf_split=config.hf_split,
        group_column=config.group_column,
        source_column=config.source_column,
    )


def _root(config: DataConfig) -> str:
    if config.root is None:
        raise ConfigError("there is no data.root", "give a folder: data.root=...")
    return config.root

"""Paths of all artifacts of a run."""

from dataclasses import dataclass
from pathlib import Path

from streetvision.contracts.errors import ConfigError


class _ArtifactPath:
    """Descriptor: an absolute path on an instance, a path relative to the run folder on the class."""

    def __init__(self, relative_path: str) -> None:
        self.relative_path = relative_path

    def __get__(self, schema: "ArtifactSchema | None", owner: type) -> Path:
        return Path(self.relative_path) if schema is None else self._folder(schema) / self.relative_path

    def _folder(self, schema: "ArtifactSchema") -> Path:
        return schema.output_dir


class _SharedPath(_ArtifactPath):
    """A path that all folds of a run share."""

    def _folder(self, schema: "ArtifactSchema") -> Path:
        return schema.run_dir or schema.output_dir


@dataclass(frozen=True)
class ArtifactSchema:
    """Layout of a run folder. Only `ensure_dirs` and `ensure_output_dir` access the disk."""

    output_dir: Path
    run_dir: Path | None = None
    """The run, if `output_dir` is the folder of one of its folds."""

    splits_json = _SharedPath("splits.json")
    """Rows with their splits, the split fractions, and the data fingerprint."""
    data_report_json = _ArtifactPath("data_report.json")
    """Files excluded from the index, with reasons."""
    seen_images = _ArtifactPath("seen_images.bin")
    """Perceptual hashes and split of each row, which the bundle carries to recognize copies of its images."""
    unlabeled_json = _ArtifactPath("unlabeled.json")
    """Images of data.unlabeled: those that phase 4a may use, and the others with reasons."""
    lock_file = _ArtifactPath(".lock")
    """Locked by the process that writes to the run."""
    scenes_dir = _ArtifactPath("scenes")
    """Drawn scenes, rendered when data.root is not set."""
    imported_dir = _ArtifactPath("imported")
    """Image files exported from a Hugging Face dataset."""
    feature_cache_dir = _SharedPath("cache/features")
    """Backbone features by model and rows; safe to delete."""
    image_cache_dir = _SharedPath("cache/images")
    """Downscaled training images; safe to delete."""

    phase4a_dir = _ArtifactPath("phase4a_explora")
    explora_checkpoint = _SharedPath("phase4a_explora/explora_checkpoint.pth")
    """State dict of the backbone that phase 1 starts from: the original one plus a share of the adaptation."""
    explora_config_json = _SharedPath("phase4a_explora/explora_config.json")
    """The architecture of the adapted backbone."""
    explora_lora = _ArtifactPath("phase4a_explora/explora_lora.pth")
    """State dict of the adapters alone, with PEFT's names."""
    explora_metrics_csv = _ArtifactPath("phase4a_explora/metrics.csv")
    """One row per epoch."""
    explora_curve_plot = _ArtifactPath("phase4a_explora/adaptation_curve.png")
    """Losses, alignment, uniformity and MCC of the nearest neighbors by epoch; the title has the effective rank."""
    adaptation_gate_json = _SharedPath("phase4a_explora/gate.json")
    """The comparison of the adapted backbone with the original one, and the share of its weights that ships."""
    explora_logs_dir = _ArtifactPath("phase4a_explora/logs")
    """TensorBoard logs and offline files of other trackers."""
    explora_training_checkpoint = _ArtifactPath("cache/phase4a.ckpt")
    """An interrupted adaptation resumes from here; removed at the end."""

    phase1_dir = _ArtifactPath("phase1")
    phase1_checkpoint = _ArtifactPath("phase1/model_best.pth")
    """State dict of the classifier that is calibrated and exported. split: the best on VAL_SELECT; cross_fit: the mean
    of the folds' heads, or the model that is trained on the images of all folds."""
    phase1_last_checkpoint = _ArtifactPath("phase1/model_last.pth")
    """State dict after the last epoch; the same as `phase1_checkpoint` under cross_fit, for a solved head, and if the
    probe ships in place of a fine-tuned model with another size of the input."""
    phase1_training_checkpoint = _ArtifactPath("cache/phase1.ckpt")
    """An interrupted training resumes from here; removed at the end."""
    model_config_json = _ArtifactPath("phase1/config.json")
    """Architecture and preprocessing: enough to build the classifier without weights."""
    phase1_metrics_csv = _ArtifactPath("phase1/metrics.csv")
    """One row per epoch."""
    probe_json = _ArtifactPath("phase1/probe.json")
    """The linear probe: the choices with their cross-validated NLL."""
    probe_head = _ArtifactPath("cache/probe_head.pt")
    """The head of the probe, for the other ranks of a distributed training."""
    step_time_json = _ArtifactPath("phase1/step_time.json")
    """training=auto: the time of a training step, from which the epochs follow."""
    fold_heads = _ArtifactPath("phase1/fold_heads.pth")
    """Under cross_fit with a linear head on the frozen backbone: the heads of the folds, whose mean ships."""
    fold_json = _ArtifactPath("phase1/fold.json")
    """In the folder of a fold of cross_fit: the training in this fold."""
    finetuning_gate_json = _ArtifactPath("phase1/gate.json")
    """The comparison of the fine-tuned model with the probe, and the share of its weights that ships."""
    learning_curve_plot = _ArtifactPath("phase1/learning_curve.png")
    """Loss on TRAIN by epoch, and metrics on VAL_SELECT under split."""
    augmentation_gate_json = _ArtifactPath("phase1/augmentation_gate.json")
    """The decision on the augmentation policy, with its metrics."""
    phase1_logs_dir = _ArtifactPath("phase1/logs")
    """TensorBoard logs and offline files of other trackers."""
    val_calib_logits = _ArtifactPath("phase1/val_calib_logits.pt")
    """(N, 2) float32 logits of VAL_CALIB by `phase1_checkpoint`; cross_fit: of all rows outside VAL_TEST, each by the
    model of its fold."""
    val_calib_labels = _ArtifactPath("phase1/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    val_calib_scores_json = _ArtifactPath("phase1/val_calib_scores.json")
    """Digests of the model, rows and tensors of these scores."""

    phase2_dir = _ArtifactPath("phase2")
    thresholds_json = _ArtifactPath("phase2/thresholds.json")
    """Policy of policy_type threshold: the MCC-optimal threshold and other operating points."""
    threshold_sweep_csv = _ArtifactPath("phase2/threshold_sweep.csv")
    """MCC and confusion counts by threshold."""
    mcc_curve_plot = _ArtifactPath("phase2/mcc_curve.png")
    """MCC by threshold with its confidence band, and the confusion counts."""

    phase4c_dir = _ArtifactPath("phase4c_cvfm")
    cvfm_config_json = _ArtifactPath("phase4c_cvfm/cvfm_config.json")
    """How images are cropped into views and how the views are fused."""
    cvfm_weights = _ArtifactPath("phase4c_cvfm/cvfm_weights.pth")
    """State dict of the fusion, when phase4c.mode is mil, dense or cvfm_trained."""
    cvfm_metrics_csv = _ArtifactPath("phase4c_cvfm/metrics.csv")
    """One row per epoch, the untrained fusion first."""
    fusion_gate_json = _ArtifactPath("phase4c_cvfm/gate.json")
    """The comparison of the fusion with the single view, and which of them ships."""
    cvfm_logits = _ArtifactPath("phase4c_cvfm/val_calib_logits.pt")
    """(N, 2) float32 fused logits of VAL_CALIB."""
    cvfm_labels = _ArtifactPath("phase4c_cvfm/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    cvfm_scores_json = _ArtifactPath("phase4c_cvfm/val_calib_scores.json")
    """Digests of the model, fusion, rows and tensors of these scores."""

    phase5_maccal_dir = _ArtifactPath("phase5_maccal")
    mac_cal_checkpoint = _ArtifactPath("phase5_maccal/model_mac_cal.pth")
    """Phase 1's model with the retrained head; calibrated and exported when phase5.method is mac_cal."""
    mac_cal_metrics_csv = _ArtifactPath("phase5_maccal/metrics.csv")
    """One row per epoch."""
    mac_cal_logits = _ArtifactPath("phase5_maccal/val_calib_logits.pt")
    """(N, 2) float32 logits of VAL_CALIB from `mac_cal_checkpoint`."""
    mac_cal_labels = _ArtifactPath("phase5_maccal/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    mac_cal_scores_json = _ArtifactPath("phase5_maccal/val_calib_scores.json")
    """Digests of the model, rows and tensors of these scores."""

    phase5_dir = _ArtifactPath("phase5_scrc")
    scrc_params_json = _ArtifactPath("phase5_scrc/scrc_params.json")
    """Policy of policy_type scrc: calibrator, operating points and risk control."""
    scrc_params_pkl = _ArtifactPath("phase5_scrc/scrc_params.pkl")
    """The same content as a pickle for other programs; never read by this package."""
    reliability_plot = _ArtifactPath("phase5_scrc/reliability.png")
    """Reliability diagram of the cross-fitted calibrated probabilities."""
    reliability_before_plot = _ArtifactPath("phase5_scrc/reliability_before.png")
    """Reliability diagram before calibration."""
    monitoring_reference = _ArtifactPath("phase5_scrc/monitoring_reference.safetensors")
    """Scores, reduced features and image quality, which the bundle carries for `streetvision monitor`."""
    out_of_fold_json = _ArtifactPath("phase5_scrc/out_of_fold.json")
    """Under cross_fit: metrics of the images of all folds, with intervals."""
    risk_coverage_plot = _ArtifactPath("phase5_scrc/risk_coverage.png")
    """Risk by coverage, the share of images without abstention."""
    pareto_front_csv = _ArtifactPath("phase5_scrc/pareto_front.csv")
    """Candidates of phase5.method=multi_objective with their objectives."""
    pareto_front_plot = _ArtifactPath("phase5_scrc/pareto_front.png")
    """Pareto front of those candidates."""

    export_dir = _ArtifactPath("export")
    bundle_json = _ArtifactPath("export/bundle.json")
    """Manifest of the bundle: the policy, and the digest of every file."""
    bundle_archive = _ArtifactPath("export.tar.gz")
    """The bundle as one file, when phase6.archive is true."""

    evaluation_dir = _ArtifactPath("evaluation")
    evaluation_report_json = _ArtifactPath("evaluation/evaluation_report.json")
    """All metrics with confidence intervals."""
    predictions_csv = _ArtifactPath("evaluation/predictions.csv")
    """Prediction of each policy for each image."""
    test_access_log_json = _ArtifactPath("evaluation/test_access_log.json")
    """Every access to VAL_TEST: time and bundle digest."""
    report_html = _ArtifactPath("evaluation/report.html")
    """The report as one HTML page."""
    roc_curve = _ArtifactPath("evaluation/roc_curve.png")
    pr_curve = _ArtifactPath("evaluation/pr_curve.png")
    confusion_matrix = _ArtifactPath("evaluation/confusion_matrix.png")
    reliability_diagram = _ArtifactPath("evaluation/reliability_diagram.png")
    threshold_curve = _ArtifactPath("evaluation/threshold_curve.png")
    """MCC on VAL_TEST by threshold."""

    search_best_yaml = _ArtifactPath("search/best.yaml")
    """The settings of the best trial of `train --search`."""

    cross_validation_dir = _ArtifactPath("cross_validation")
    cross_validation_data_json = _ArtifactPath("cross_validation/data.json")
    """The settings of the data of `streetvision cross-validate`: a folder belongs to one data set."""
    cross_validation_json = _ArtifactPath("cross_validation/cross_validation.json")
    """Result of `streetvision cross-validate`: metrics with intervals, repeats, learning curve."""
    cross_validation_html = _ArtifactPath("cross_validation/report.html")
    """The same as an HTML page."""

    reward_dir = _ArtifactPath("reward")
    reward_report_json = _ArtifactPath("reward/reward_report.json")
    """Expected subnet reward by profile, level and source."""

    def in_fold(self, fold: int) -> "ArtifactSchema":
        """Return the paths of one fold of cross_fit, which are those of a run in a folder of its own."""
        return ArtifactSchema(self.output_dir / "folds" / str(fold), run_dir=self.output_dir)

    def phase1_ranked_checkpoint(self, rank: int) -> Path:
        """Return the path of the classifier ranked `rank` >= 2 on VAL_SELECT."""
        return self.phase1_dir / f"model_best_{rank}.pth"

    def path(self, artifact: str) -> Path:
        """Return the path of an artifact by its attribute name, for example thresholds_json."""
        assert isinstance(vars(ArtifactSchema).get(artifact), _ArtifactPath), f"{artifact} is not an artifact"
        path: Path = getattr(self, artifact)
        return path

    def folder(self, phase: str) -> Path:
        """Return the folder that `phase` writes to."""
        return self.output_dir / PHASE_FOLDERS[phase]

    def manifest(self, phase: str) -> Path:
        """Return the path of the manifest of `phase`, which is written last."""
        return self.folder(phase) / "manifest.json"

    def ensure_dirs(self) -> None:
        """Create the run folder and the folder of every phase.

        Raises:
            ConfigError: a folder cannot be created.
        """
        self.ensure_output_dir()
        for folder in PHASE_FOLDERS.values():
            (self.output_dir / folder).mkdir(parents=True, exist_ok=True)

    def ensure_output_dir(self) -> None:
        """Create the run folder only.

        Raises:
            ConfigError: the folder cannot be created.
        """
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir {str(self.output_dir)!r} cannot be created: {error.strerror}",
                "set run_dir to a folder with write permission",
            ) from error


PHASE_FOLDERS = {
    "data": ".",
    "phase4a_explora": "phase4a_explora",
    "phase1": "phase1",
    "phase2": "phase2",
    "phase4c_cvfm": "phase4c_cvfm",
    "phase5_maccal": "phase5_maccal",
    "phase5": "phase5_scrc",
    "phase6": "export",
    "evaluate": "evaluation",
    "evaluate_data": "evaluation_data",
    "reward": "reward",
}
"""Phase id -> the folder that it writes to, relative to the run folder."""

"""Every path of a run, from one folder."""

from dataclasses import dataclass
from pathlib import Path

from streetvision.contracts.errors import ConfigError


class _At:
    """A path of the run folder, by its place relative to it."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __get__(self, schema: "ArtifactSchema | None", owner: type) -> Path:
        return Path(self.place) if schema is None else schema.output_dir / self.place


@dataclass(frozen=True)
class ArtifactSchema:
    """The layout of a run folder. It touches no disk until `ensure_dirs`."""

    output_dir: Path

    splits_json = _At("splits.json")
    """Rows, their splits, fractions, and the fingerprint of the data."""
    data_report_json = _At("data_report.json")
    """What was left out of the index, and why."""
    unlabeled_json = _At("unlabeled.json")
    """Images of data.unlabeled that phase 4a may use, and the reason for each that it may not."""
    lock_file = _At(".lock")
    """Held by the process that writes to the run."""
    scenes_dir = _At("scenes")
    """Procedural scenes, drawn when no data.root is given."""
    imported_dir = _At("imported")
    """Images of a Hugging Face dataset, written as files."""
    feature_cache_dir = _At("cache/features")
    """Backbone features by model and image; safe to delete."""
    image_cache_dir = _At("cache/images")
    """Small copies of the training images; safe to delete."""

    phase4a_dir = _At("phase4a_explora")
    explora_checkpoint = _At("phase4a_explora/explora_checkpoint.pth")
    """The adapted backbone, adapters merged: a plain state dict."""
    explora_config_json = _At("phase4a_explora/explora_config.json")
    """Which backbone was adapted, and how."""
    explora_lora = _At("phase4a_explora/explora_lora.pth")
    """The adapters alone, as PEFT names them."""
    explora_metrics_csv = _At("phase4a_explora/metrics.csv")
    """One row an epoch."""
    explora_curve_plot = _At("phase4a_explora/adaptation_curve.png")
    """Loss and spread of the embeddings by epoch."""
    explora_logs_dir = _At("phase4a_explora/logs")
    """TensorBoard, and offline files of other trackers."""
    explora_training_checkpoint = _At("cache/phase4a.ckpt")
    """Where an interrupted adaptation resumes; removed when it has finished."""

    phase1_dir = _At("phase1")
    phase1_checkpoint = _At("phase1/model_best.pth")
    """State dict of the classifier that VAL_SELECT prefers; it is calibrated and shipped."""
    phase1_last_checkpoint = _At("phase1/model_last.pth")
    """State dict after the last epoch."""
    phase1_training_checkpoint = _At("cache/phase1.ckpt")
    """Where an interrupted training resumes; removed when it has finished."""
    model_config_json = _At("phase1/config.json")
    """Architecture and preprocessing: all that is needed to build the classifier without weights."""
    phase1_metrics_csv = _At("phase1/metrics.csv")
    """One row an epoch."""
    learning_curve_plot = _At("phase1/learning_curve.png")
    """Loss on TRAIN and metrics on VAL_SELECT by epoch."""
    augmentation_gate_json = _At("phase1/augmentation_gate.json")
    """The decision on the augmentation policy, with its figures."""
    phase1_logs_dir = _At("phase1/logs")
    """TensorBoard, and offline files of other trackers."""
    val_calib_logits = _At("phase1/val_calib_logits.pt")
    """(N, 2) float32 logits of VAL_CALIB from `phase1_checkpoint`."""
    val_calib_labels = _At("phase1/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    val_calib_scores_json = _At("phase1/val_calib_scores.json")
    """Digests of the model, rows and tensors that make up these scores."""

    phase2_dir = _At("phase2")
    thresholds_json = _At("phase2/thresholds.json")
    """The MCC-optimal threshold and other operating points, of policy_type threshold."""
    threshold_sweep_csv = _At("phase2/threshold_sweep.csv")
    """MCC and confusion counts at each point of the grid."""
    mcc_curve_plot = _At("phase2/mcc_curve.png")
    """MCC by threshold, with its band."""

    phase4c_dir = _At("phase4c_cvfm")
    cvfm_config_json = _At("phase4c_cvfm/cvfm_config.json")
    """How images are cut into views and the views are fused."""
    cvfm_weights = _At("phase4c_cvfm/cvfm_weights.pth")
    """The trained fusion, when phase4c.mode is cvfm_trained."""
    cvfm_metrics_csv = _At("phase4c_cvfm/metrics.csv")
    """One row an epoch, the untrained fusion first."""
    cvfm_logits = _At("phase4c_cvfm/val_calib_logits.pt")
    """(N, 2) float32 fused logits of VAL_CALIB."""
    cvfm_labels = _At("phase4c_cvfm/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    cvfm_scores_json = _At("phase4c_cvfm/val_calib_scores.json")
    """Digests of the model, fusion, rows and tensors that make up these scores."""

    phase5_maccal_dir = _At("phase5_maccal")
    mac_cal_checkpoint = _At("phase5_maccal/model_mac_cal.pth")
    """Phase 1's model with the retrained head; calibrated and shipped under phase5.method=mac_cal."""
    mac_cal_metrics_csv = _At("phase5_maccal/metrics.csv")
    """One row an epoch."""
    mac_cal_logits = _At("phase5_maccal/val_calib_logits.pt")
    """(N, 2) float32 logits of VAL_CALIB from `mac_cal_checkpoint`."""
    mac_cal_labels = _At("phase5_maccal/val_calib_labels.pt")
    """(N,) int64 labels of VAL_CALIB."""
    mac_cal_scores_json = _At("phase5_maccal/val_calib_scores.json")
    """Digests of the model, rows and tensors that make up these scores."""

    phase5_dir = _At("phase5_scrc")
    scrc_params_json = _At("phase5_scrc/scrc_params.json")
    """Calibrator, operating points and risk control, of policy_type scrc."""
    scrc_params_pkl = _At("phase5_scrc/scrc_params.pkl")
    """The same pickled, for programs that expect it; never read here."""
    reliability_plot = _At("phase5_scrc/reliability.png")
    """Cross-fitted calibrated probabilities against frequencies."""
    reliability_before_plot = _At("phase5_scrc/reliability_before.png")
    """The same before calibration."""
    risk_coverage_plot = _At("phase5_scrc/risk_coverage.png")
    """Risk by the share of images that are not abstained."""
    pareto_front_csv = _At("phase5_scrc/pareto_front.csv")
    """Candidates of phase5.method=multi_objective, with their figures."""
    pareto_front_plot = _At("phase5_scrc/pareto_front.png")
    """The front of those candidates."""

    export_dir = _At("export")
    bundle_json = _At("export/bundle.json")
    """Table of contents of the bundle: the policy, and the digest of every file."""
    bundle_archive = _At("export.tar.gz")
    """The bundle as one file, when phase6.archive asks for it."""

    evaluation_dir = _At("evaluation")
    evaluation_report_json = _At("evaluation/evaluation_report.json")
    """Every figure with its interval."""
    predictions_csv = _At("evaluation/predictions.csv")
    """What each policy predicted for each image."""
    test_access_log_json = _At("evaluation/test_access_log.json")
    """Every access to VAL_TEST: when, and by which bundle."""
    report_html = _At("evaluation/report.html")
    """The report as one page."""
    roc_curve = _At("evaluation/roc_curve.png")
    pr_curve = _At("evaluation/pr_curve.png")
    confusion_matrix = _At("evaluation/confusion_matrix.png")
    reliability_diagram = _At("evaluation/reliability_diagram.png")
    threshold_curve = _At("evaluation/threshold_curve.png")
    """MCC on VAL_TEST by threshold."""

    reward_dir = _At("reward")
    reward_report_json = _At("reward/reward_report.json")
    """Expected subnet reward by profile, level and source."""

    def phase1_ranked_checkpoint(self, rank: int) -> Path:
        """State dict of the classifier that came out as number `rank` >= 2 on VAL_SELECT."""
        return self.phase1_dir / f"model_best_{rank}.pth"

    def path(self, artifact: str) -> Path:
        """The path of an artifact by its name in this class, for example thresholds_json."""
        assert isinstance(vars(ArtifactSchema).get(artifact), _At), f"{artifact} is not an artifact"
        found: Path = getattr(self, artifact)
        return found

    def folder(self, phase: str) -> Path:
        """The folder that `phase` writes to; its manifest.json lies there."""
        return self.output_dir / PHASE_FOLDERS[phase]

    def manifest(self, phase: str) -> Path:
        """The record of what `phase` read and wrote, written last."""
        return self.folder(phase) / "manifest.json"

    def ensure_dirs(self) -> None:
        """Create the run folder and the folder of every phase; raises ConfigError when that fails."""
        self.ensure_output_dir()
        for place in PHASE_FOLDERS.values():
            (self.output_dir / place).mkdir(parents=True, exist_ok=True)

    def ensure_output_dir(self) -> None:
        """Create the run folder alone; raises ConfigError when that fails."""
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir {str(self.output_dir)!r} cannot be created: {error.strerror}",
                "give a folder you may write to: run_dir=...",
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
"""Phase -> the folder it writes to, relative to the run folder."""

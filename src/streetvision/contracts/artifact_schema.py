"""Every path of a run, from one root."""

from dataclasses import dataclass
from pathlib import Path

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.rescored_artifacts import RescoredArtifacts


@dataclass(frozen=True)
class ArtifactSchema(RescoredArtifacts):
    """The layout of a run folder. It touches no disk until `ensure_dirs`."""

    @property
    def splits(self) -> Path:
        """Rows, roles, fractions and the fingerprint of the data."""
        return self.root / "splits.json"

    @property
    def data_report(self) -> Path:
        """What was left out of the index, and why."""
        return self.root / "data_report.json"

    @property
    def unlabeled(self) -> Path:
        """Images of data.unlabeled that phase 4a may see, and why it may not see the others."""
        return self.root / "unlabeled.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes to this run."""
        return self.root / ".lock"

    @property
    def scenes(self) -> Path:
        """Procedural scenes, when no data.root was given."""
        return self.root / "scenes"

    @property
    def imported(self) -> Path:
        """Images taken out of a Hugging Face dataset."""
        return self.root / "imported"

    @property
    def features(self) -> Path:
        """Cached backbone features; safe to delete."""
        return self.root / "cache" / "features"

    @property
    def image_cache(self) -> Path:
        """Small copies of the training images; safe to delete."""
        return self.root / "cache" / "images"

    @property
    def phase4a(self) -> Path:
        """The backbone adapted without labels."""
        return self.root / "phase4a_explora"

    @property
    def explora_checkpoint(self) -> Path:
        """The adapted backbone with its adapters merged, under the names that it had before."""
        return self.phase4a / "explora_checkpoint.pth"

    @property
    def explora_config(self) -> Path:
        """How to build the backbone that the checkpoint fills."""
        return self.phase4a / "explora_config.json"

    @property
    def explora_lora(self) -> Path:
        """The adapters alone, before they were merged."""
        return self.phase4a / "explora_lora.pth"

    @property
    def explora_metrics(self) -> Path:
        """One row an epoch, the first one before training."""
        return self.phase4a / "metrics.csv"

    @property
    def explora_curve(self) -> Path:
        """The same as a picture."""
        return self.phase4a / "adaptation_curve.png"

    @property
    def explora_logs(self) -> Path:
        """Files of TensorBoard and of the tracker that phase4a.tracker names."""
        return self.phase4a / "logs"

    @property
    def explora_training(self) -> Path:
        """What an interrupted phase 4a goes on from; gone once it is through."""
        return self.root / "cache" / "phase4a.ckpt"

    @property
    def phase1(self) -> Path:
        """The classifier and its scores."""
        return self.root / "phase1"

    @property
    def model_best(self) -> Path:
        """The checkpoint that VAL_SELECT chose: what is calibrated and shipped."""
        return self.phase1 / "model_best.pth"

    @property
    def model_last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.phase1 / "model_last.pth"

    def model_ranked(self, rank: int) -> Path:
        """The checkpoint that VAL_SELECT ranks second, third and so on, when training.keep_best asks for them."""
        return self.phase1 / f"model_best_{rank}.pth"

    @property
    def training_checkpoint(self) -> Path:
        """What an interrupted phase 1 goes on from; gone once it is through."""
        return self.root / "cache" / "phase1.ckpt"

    @property
    def model_config(self) -> Path:
        """How to build the classifier that the checkpoints hold."""
        return self.phase1 / "config.json"

    @property
    def train_metrics(self) -> Path:
        """One row an epoch."""
        return self.phase1 / "metrics.csv"

    @property
    def learning_curve(self) -> Path:
        """The same as a picture."""
        return self.phase1 / "learning_curve.png"

    @property
    def augmentation_gate(self) -> Path:
        """Whether the augmentation was admitted, when augmentation.gate tried it."""
        return self.phase1 / "augmentation_gate.json"

    @property
    def training_logs(self) -> Path:
        """Files of TensorBoard and of the tracker that training.tracker names."""
        return self.phase1 / "logs"

    @property
    def val_calib_logits(self) -> Path:
        """(N, 2) float32 logits of VAL_CALIB from `model_best`."""
        return self.phase1 / "val_calib_logits.pt"

    @property
    def val_calib_labels(self) -> Path:
        """(N,) int64 labels of VAL_CALIB."""
        return self.phase1 / "val_calib_labels.pt"

    @property
    def val_calib_scores(self) -> Path:
        """Which model, rows and tensors make up the scores of VAL_CALIB."""
        return self.phase1 / "val_calib_scores.json"

    @property
    def phase2(self) -> Path:
        """The threshold of phase 1's scores."""
        return self.root / "phase2"

    @property
    def thresholds(self) -> Path:
        """The threshold policy."""
        return self.phase2 / "thresholds.json"

    @property
    def threshold_sweep(self) -> Path:
        """The grid that was asked for, one row a threshold."""
        return self.phase2 / "threshold_sweep.csv"

    @property
    def mcc_curve(self) -> Path:
        """MCC over the threshold."""
        return self.phase2 / "mcc_curve.png"

    @property
    def phase5(self) -> Path:
        """Calibration and the operating point."""
        return self.root / "phase5_scrc"

    @property
    def scrc_params(self) -> Path:
        """The scrc policy: calibrator state, operating point, figures."""
        return self.phase5 / "scrc_params.json"

    @property
    def scrc_params_pickle(self) -> Path:
        """The same content for tools that expect a pickle; never read here."""
        return self.phase5 / "scrc_params.pkl"

    @property
    def reliability(self) -> Path:
        """Reliability after calibration, cross-fitted, with the uncalibrated shares behind."""
        return self.phase5 / "reliability.png"

    @property
    def reliability_before(self) -> Path:
        """Reliability of the uncalibrated scores."""
        return self.phase5 / "reliability_before.png"

    @property
    def risk_coverage(self) -> Path:
        """The risk of an answer against the share that is answered."""
        return self.phase5 / "risk_coverage.png"

    @property
    def pareto_front(self) -> Path:
        """Every candidate of phase5.method=multi_objective, the front first."""
        return self.phase5 / "pareto_front.csv"

    @property
    def pareto_picture(self) -> Path:
        """The same as a picture."""
        return self.phase5 / "pareto_front.png"

    @property
    def export(self) -> Path:
        """The bundle: one folder that runs anywhere."""
        return self.root / "export"

    @property
    def bundle(self) -> Path:
        """The bundle's table of contents."""
        return self.export / "bundle.json"

    @property
    def bundle_archive(self) -> Path:
        """The bundle as one reproducible file, when phase6.compression asks for it."""
        return self.root / "export.tar.gz"

    @property
    def evaluation(self) -> Path:
        """Figures and pictures of VAL_TEST."""
        return self.root / "evaluation"

    @property
    def evaluation_report(self) -> Path:
        """Every figure of the evaluation, with its interval."""
        return self.evaluation / "evaluation_report.json"

    @property
    def predictions(self) -> Path:
        """What every policy answered to every image of the evaluation."""
        return self.evaluation / "predictions.csv"

    @property
    def looks(self) -> Path:
        """Every look at VAL_TEST: when, and through which bundle."""
        return self.evaluation / "looks.json"

    @property
    def roc_curve(self) -> Path:
        """Misses against false alarms."""
        return self.evaluation / "roc_curve.png"

    @property
    def pr_curve(self) -> Path:
        """Trust in an alarm against what is found."""
        return self.evaluation / "pr_curve.png"

    @property
    def confusion_matrix(self) -> Path:
        """What was called what."""
        return self.evaluation / "confusion_matrix.png"

    @property
    def reliability_diagram(self) -> Path:
        """Whether the probabilities come true on VAL_TEST."""
        return self.evaluation / "reliability_diagram.png"

    @property
    def threshold_curve(self) -> Path:
        """What other thresholds would have given on VAL_TEST."""
        return self.evaluation / "threshold_curve.png"

    @property
    def report_html(self) -> Path:
        """The same for a person, in one page."""
        return self.evaluation / "report.html"

    @property
    def reward(self) -> Path:
        """What the subnet's scoring would make of the bundle."""
        return self.root / "reward"

    @property
    def reward_report(self) -> Path:
        """Expected reward by profile, level and source."""
        return self.reward / "reward_report.json"

    def path(self, artifact: str) -> Path:
        """The path of an artifact by the name of its property, for example model_best."""
        found = getattr(self, artifact)
        assert isinstance(found, Path), f"{artifact} is not an artifact"
        return found

    def folder(self, phase: str) -> Path:
        """The folder that `phase` writes to; its manifest.json lies there."""
        folders = {
            "data": self.root,
            "phase4a_explora": self.phase4a,
            "phase1": self.phase1,
            "phase2": self.phase2,
            "phase4c_cvfm": self.phase4c,
            "phase5_maccal": self.phase5_maccal,
            "phase5": self.phase5,
            "phase6": self.export,
            "evaluate": self.evaluation,
            "evaluate_data": self.root / "evaluation_data",
            "reward": self.reward,
        }
        return folders[phase]

    def manifest(self, phase: str) -> Path:
        """The record of what `phase` read and wrote, written last."""
        return self.folder(phase) / "manifest.json"

    def ensure_dirs(self) -> None:
        """Create the run folder, or say why it cannot be."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir {str(self.root)!r} cannot be created: {error.strerror}",
                "give a folder you may write to: run_dir=...",
            ) from error

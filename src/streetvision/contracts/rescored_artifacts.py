"""Paths of the phases that score VAL_CALIB anew between phase 1 and phase 5, and run only when they are asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RescoredArtifacts:
    """The part of ArtifactSchema that phase4c_cvfm and phase5_maccal write."""

    root: Path

    @property
    def phase4c(self) -> Path:
        """How views of an image are fused, and the fused scores."""
        return self.root / "phase4c_cvfm"

    @property
    def cvfm_config(self) -> Path:
        """How images are cut into views and the views are fused."""
        return self.phase4c / "cvfm_config.json"

    @property
    def cvfm_weights(self) -> Path:
        """The trained fusion, when phase4c.mode is cvfm_trained."""
        return self.phase4c / "cvfm_weights.pth"

    @property
    def cvfm_metrics(self) -> Path:
        """One row an epoch, the untrained fusion first."""
        return self.phase4c / "metrics.csv"

    @property
    def cvfm_logits(self) -> Path:
        """(N, 2) float32 fused logits of VAL_CALIB."""
        return self.phase4c / "val_calib_logits.pt"

    @property
    def cvfm_labels(self) -> Path:
        """(N,) int64 labels of VAL_CALIB."""
        return self.phase4c / "val_calib_labels.pt"

    @property
    def cvfm_scores(self) -> Path:
        """Which model, fusion, rows and tensors make up these scores."""
        return self.phase4c / "val_calib_scores.json"

    @property
    def phase5_maccal(self) -> Path:
        """The head trained anew for calibration, and its scores."""
        return self.root / "phase5_maccal"

    @property
    def mac_cal_model(self) -> Path:
        """Phase 1's model with the new head: what is calibrated and shipped under phase5.method=mac_cal."""
        return self.phase5_maccal / "model_mac_cal.pth"

    @property
    def mac_cal_metrics(self) -> Path:
        """One row an epoch."""
        return self.phase5_maccal / "metrics.csv"

    @property
    def mac_cal_logits(self) -> Path:
        """(N, 2) float32 logits of VAL_CALIB from `mac_cal_model`."""
        return self.phase5_maccal / "val_calib_logits.pt"

    @property
    def mac_cal_labels(self) -> Path:
        """(N,) int64 labels of VAL_CALIB."""
        return self.phase5_maccal / "val_calib_labels.pt"

    @property
    def mac_cal_scores(self) -> Path:
        """Which model, rows and tensors make up these scores."""
        return self.phase5_maccal / "val_calib_scores.json"

"""The table of phases: settings, inputs and outputs of each. The code of a phase is imported when it runs."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from streetvision.calibration.config import Phase5Config, RiskConfig
from streetvision.contracts.phase import Context, Phase
from streetvision.data.config import AugmentationConfig, DataConfig, LoaderConfig
from streetvision.models.config import HardwareConfig, ModelConfig
from streetvision.pipeline.artifacts import (
    REPORT,
    SCORES,
    adapted_checkpoint_inputs,
    data_digest,
    evaluated_bundle_digest,
    evaluated_data_digest,
    export_inputs,
    rewarded_bundle_digest,
    served_score_inputs,
    threshold_inputs,
    unlabeled_inputs,
    weights_digest,
)
from streetvision.pipeline.settings import EvaluationConfig, Phase2Config, Phase6Config, RewardConfig
from streetvision.training.config import CvfmConfig, MacCalConfig, TrainingConfig
from streetvision.training.ssl.config import ExPLoRAConfig


def _step(module: str, function: str = "run") -> Callable[[Context], Any]:
    """A function of a module in steps/, which is imported at the first call."""

    def call(context: Context) -> Any:
        return getattr(import_module(f"streetvision.pipeline.steps.{module}"), function)(context)

    return call


_PHASES = (
    Phase(
        id="data",
        title="split",
        config=(DataConfig, LoaderConfig, RiskConfig),
        inputs=(),
        outputs=("splits_json", "data_report_json"),
        optional_outputs=("unlabeled_json", "seen_images"),
        run=_step("prepare_data"),
        external_digest=data_digest,
    ),
    Phase(
        id="phase4a_explora",
        title="adapt",
        config=(ModelConfig, ExPLoRAConfig, HardwareConfig, LoaderConfig),
        inputs=("splits_json",),
        outputs=(
            "explora_checkpoint",
            "explora_config_json",
            "explora_lora",
            "adaptation_gate_json",
            "explora_metrics_csv",
            "explora_curve_plot",
        ),
        run=_step("train_explora"),
        run_worker=_step("train_explora", "run_worker"),
        optional_inputs=unlabeled_inputs,
        external_digest=weights_digest,
    ),
    Phase(
        id="phase1",
        title="train",
        config=(ModelConfig, TrainingConfig, HardwareConfig, AugmentationConfig, LoaderConfig),
        inputs=("splits_json",),
        outputs=(
            "phase1_checkpoint",
            "phase1_last_checkpoint",
            "model_config_json",
            "phase1_metrics_csv",
            "learning_curve_plot",
            "val_calib_logits",
            "val_calib_labels",
            "val_calib_scores_json",
        ),
        optional_outputs=("fold_heads",),
        run=_step("train_baseline"),
        run_worker=_step("train_baseline", "run_worker"),
        optional_inputs=adapted_checkpoint_inputs,
        external_digest=weights_digest,
    ),
    Phase(
        id="phase2",
        title="threshold",
        config=(Phase2Config,),
        inputs=SCORES,
        outputs=("thresholds_json",),
        optional_outputs=("threshold_sweep_csv", "mcc_curve_plot"),
        run=_step("sweep_thresholds"),
    ),
    Phase(
        id="phase4c_cvfm",
        title="fuse",
        config=(CvfmConfig, LoaderConfig),
        inputs=("splits_json", "phase1_checkpoint", "model_config_json", "val_calib_scores_json"),
        outputs=(
            "cvfm_config_json",
            "cvfm_metrics_csv",
            "fusion_gate_json",
        ),
        optional_outputs=("cvfm_logits", "cvfm_labels", "cvfm_scores_json"),
        run=_step("train_cvfm"),
    ),
    Phase(
        id="phase5_maccal",
        title="retrain",
        config=(MacCalConfig, LoaderConfig),
        inputs=("splits_json", "phase1_checkpoint", "model_config_json"),
        outputs=(
            "mac_cal_checkpoint",
            "mac_cal_metrics_csv",
            "mac_cal_logits",
            "mac_cal_labels",
            "mac_cal_scores_json",
        ),
        run=_step("train_mac_cal"),
    ),
    Phase(
        id="phase5",
        title="calibrate",
        config=(Phase5Config, CvfmConfig, LoaderConfig),
        inputs=(*SCORES, "phase1_checkpoint", "model_config_json"),
        outputs=(
            "scrc_params_json",
            "scrc_params_pkl",
            "reliability_before_plot",
            "reliability_plot",
            "risk_coverage_plot",
            "monitoring_reference",
        ),
        run=_step("calibrate_scrc"),
        optional_inputs=served_score_inputs,
    ),
    Phase(
        id="phase6",
        title="export",
        config=(Phase6Config,),
        inputs=("splits_json", "phase1_checkpoint", "model_config_json"),
        outputs=("bundle_json",),
        run=_step("export_bundle"),
        optional_inputs=export_inputs,
    ),
    Phase(
        id="evaluate",
        title="evaluate",
        config=(EvaluationConfig, LoaderConfig),
        inputs=("splits_json",),
        outputs=REPORT,
        run=_step("evaluate_model"),
        optional_inputs=threshold_inputs,
        external_digest=evaluated_bundle_digest,
    ),
    Phase(
        id="evaluate_data",
        title="evaluate",
        config=(EvaluationConfig, DataConfig, LoaderConfig),
        inputs=(),
        outputs=("data_report_json", *REPORT),
        run=_step("evaluate_model", "run_on_data"),
        external_digest=evaluated_data_digest,
    ),
    Phase(
        id="reward",
        title="reward",
        config=(RewardConfig, LoaderConfig),
        inputs=("splits_json",),
        outputs=("reward_report_json",),
        run=_step("expect_reward"),
        external_digest=rewarded_bundle_digest,
    ),
)

PHASES: Mapping[str, Phase] = {phase.id: phase for phase in _PHASES}
"""Id -> phase, in the order of the data flow."""

PRELOADED = (
    "streetvision.models.transformers_backbone",
    "streetvision.pipeline.config",
    "streetvision.pipeline.run",
    *(
        f"streetvision.pipeline.steps.{step}"
        for step in (
            "prepare_data",
            "train_explora",
            "train_baseline",
            "cross_fit_baseline",
            "sweep_thresholds",
            "train_cvfm",
            "calibrate_scrc",
            "export_bundle",
            "evaluate_model",
        )
    ),
    "matplotlib.backends.backend_agg",
    "peft",
    "timm",
    "torch.utils.tensorboard",
    "transformers.image_processing_utils",
)
"""Modules that together import all that a run needs: the fork server of processes that train imports them once."""

"""The table of phases: what each reads, writes and can be told. The code that does it loads when it runs."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from streetvision.calibration.config import Phase5Config
from streetvision.contracts.phase import Context, Phase
from streetvision.data.config import AugmentationConfig, DataConfig, LoaderConfig
from streetvision.models.config import ModelConfig
from streetvision.pipeline.artifacts import (
    REPORT,
    SCORES,
    adapted_here,
    digest_of_data,
    digest_of_weights,
    judged_bundle,
    judged_data,
    policy_artifacts,
    rewarded_bundle,
    run_s_thresholds,
    served_scores,
    unlabelled_images,
)
from streetvision.pipeline.phase_settings import EvaluationConfig, Phase2Config, Phase6Config, RewardConfig
from streetvision.training.config import MacCalConfig, TrainingConfig
from streetvision.training.fusion_config import CvfmConfig
from streetvision.training.ssl.config import ExPLoRAConfig


def _step(module: str, function: str = "run") -> Callable[[Context], Any]:
    """A function of a module in steps/, which is imported with all its libraries at the first call."""

    def call(context: Context) -> Any:
        return getattr(import_module(f"streetvision.pipeline.steps.{module}"), function)(context)

    return call


_PHASES = (
    Phase(
        id="data",
        title="split",
        config=(DataConfig, LoaderConfig),
        needs=(),
        makes=("splits", "data_report"),
        may_make=("unlabeled",),
        run=_step("prepare_data"),
        external=digest_of_data,
    ),
    Phase(
        id="phase4a_explora",
        title="adapt",
        config=(ModelConfig, ExPLoRAConfig, LoaderConfig, DataConfig),
        needs=("splits",),
        makes=(
            "explora_checkpoint",
            "explora_config",
            "explora_lora",
            "explora_metrics",
            "explora_curve",
        ),
        run=_step("train_explora"),
        join=_step("train_explora", "join"),
        also_needs=unlabelled_images,
        external=digest_of_weights,
    ),
    Phase(
        id="phase1",
        title="train",
        config=(ModelConfig, TrainingConfig, AugmentationConfig, LoaderConfig),
        needs=("splits",),
        makes=(
            "model_best",
            "model_last",
            "model_config",
            "train_metrics",
            "learning_curve",
            "val_calib_logits",
            "val_calib_labels",
            "val_calib_scores",
        ),
        run=_step("train_baseline"),
        join=_step("train_baseline", "join"),
        also_needs=adapted_here,
        external=digest_of_weights,
    ),
    Phase(
        id="phase2",
        title="cut",
        config=(Phase2Config,),
        needs=SCORES,
        makes=("thresholds", "threshold_sweep", "mcc_curve"),
        run=_step("sweep_thresholds"),
    ),
    Phase(
        id="phase4c_cvfm",
        title="fuse",
        config=(CvfmConfig, LoaderConfig),
        needs=("splits", "model_best", "model_config"),
        makes=("cvfm_config", "cvfm_metrics", "cvfm_logits", "cvfm_labels", "cvfm_scores"),
        run=_step("train_cvfm"),
    ),
    Phase(
        id="phase5_maccal",
        title="retrain",
        config=(MacCalConfig, LoaderConfig),
        needs=("splits", "model_best", "model_config"),
        makes=("mac_cal_model", "mac_cal_metrics", "mac_cal_logits", "mac_cal_labels", "mac_cal_scores"),
        run=_step("train_mac_cal"),
    ),
    Phase(
        id="phase5",
        title="trust",
        config=(Phase5Config, CvfmConfig),
        needs=SCORES,
        makes=("scrc_params", "scrc_params_pickle", "reliability_before", "reliability", "risk_coverage"),
        run=_step("calibrate_scrc"),
        also_needs=served_scores,
    ),
    Phase(
        id="phase6",
        title="ship",
        config=(Phase6Config,),
        needs=("splits", "model_best", "model_config"),
        makes=("bundle",),
        run=_step("export_bundle"),
        also_needs=policy_artifacts,
    ),
    Phase(
        id="evaluate",
        title="judge",
        config=(EvaluationConfig, LoaderConfig),
        needs=("splits",),
        makes=REPORT,
        run=_step("evaluate_model"),
        also_needs=run_s_thresholds,
        external=judged_bundle,
    ),
    Phase(
        id="evaluate_data",
        title="judge",
        config=(EvaluationConfig, DataConfig, LoaderConfig),
        needs=(),
        makes=("data_report", *REPORT),
        run=_step("evaluate_model", "run_elsewhere"),
        external=judged_data,
    ),
    Phase(
        id="reward",
        title="score",
        config=(RewardConfig, LoaderConfig),
        needs=("splits",),
        makes=("reward_report",),
        run=_step("expect_reward"),
        external=rewarded_bundle,
    ),
)

PHASES: Mapping[str, Phase] = {phase.id: phase for phase in _PHASES}
"""Id -> phase, in the order of the data."""

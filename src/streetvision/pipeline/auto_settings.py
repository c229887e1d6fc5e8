"""Settings that follow from the machine and the size of the data, printed with key, value and reason."""

import os
from collections.abc import Iterator

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.models.device import has_fast_bf16, pick_device
from streetvision.training.config import LearningConfig, TrainingConfig

SMALL_TRAIN = 300
"""Images in TRAIN below which fine-tuning is not suggested."""


def log_auto_settings(context: Context, config: LearningConfig, *, section: str) -> None:
    """Print the automatic settings of `config`, whose configuration section is `section`, and of the loader."""
    for setting, reason in [*_loader_settings(context), *_training_settings(context, config, section)]:
        context.progress.auto_setting(setting, reason)


def _loader_settings(context: Context) -> Iterator[tuple[str, str]]:
    loader, cores = context.settings(LoaderConfig), os.cpu_count() or 1
    if loader.num_workers is None:
        reason = f"{cores} cores, 2 of them for the model" if loader.worker_count else f"{cores} cores, for the model"
        yield f"loader.num_workers={loader.worker_count}", reason


def _training_settings(context: Context, config: LearningConfig, section: str) -> Iterator[tuple[str, str]]:
    device, n = pick_device(), len(context.rows(Split.TRAIN))
    if isinstance(config, TrainingConfig) and config.mode == "frozen":
        if n < SMALL_TRAIN:
            reason = f"{n} images in TRAIN are few for fine-tuning"
        elif device.type == "cpu":
            reason = f"no GPU; training=peft may be more accurate with {n} images in TRAIN, but is much slower"
        else:
            reason = f"the fastest mode; training=peft may be more accurate with {n} images in TRAIN"
        yield f"{section}=frozen", reason
    elif config.precision == "auto":
        fast = has_fast_bf16(device)
        reason = f"this {device.type} {'computes' if fast else 'does not compute'} in bf16 natively"
        yield f"{section}.mixed_precision.enabled={'true' if fast else 'false'}", reason

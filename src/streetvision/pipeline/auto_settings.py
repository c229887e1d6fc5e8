"""What was left to the machine and to the size of the data, told before training: the choice, its reason, its key."""

import os
from collections.abc import Iterator

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.models.device import has_fast_bf16, pick_device
from streetvision.training.config import LearningConfig, TrainingConfig

FEW = 300
"""Images in TRAIN below which a backbone is left as it is, unless it is asked for."""


def log_auto_settings(context: Context, config: LearningConfig, *, section: str) -> None:
    """Print every choice that `config`, which the settings call `section`, and the loader leave open."""
    for setting, reason in [*_of_the_loader(context), *_of_the_training(context, config, section)]:
        context.progress.auto_setting(setting, reason)


def _of_the_loader(context: Context) -> Iterator[tuple[str, str]]:
    loader, cores = context.settings(LoaderConfig), os.cpu_count() or 1
    if loader.num_workers is None:
        why = f"{cores} cores, two of them for the model" if loader.worker_count else f"{cores} cores, for the model"
        yield f"loader.num_workers={loader.worker_count}", why


def _of_the_training(context: Context, config: LearningConfig, section: str) -> Iterator[tuple[str, str]]:
    device, n = pick_device(), len(context.rows(Split.TRAIN))
    if isinstance(config, TrainingConfig) and config.mode == "frozen":
        if n < FEW:
            why = f"{n} images in TRAIN are few to adapt a backbone on"
        elif device.type == "cpu":
            why = f"no GPU here; training=peft may learn more from {n} images in TRAIN, in far more time"
        else:
            why = f"the quickest; training=peft may learn more from {n} images in TRAIN"
        yield f"{section}=frozen", why
    elif config.precision == "auto":
        fast = has_fast_bf16(device)
        why = f"this {device.type} {'computes' if fast else 'does not compute'} in bf16 natively"
        yield f"{section}.mixed_precision.enabled={'true' if fast else 'false'}", why

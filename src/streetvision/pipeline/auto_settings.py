"""Settings that follow from the machine and the size of the data, printed with key, value and reason."""

from collections.abc import Iterator

import numpy as np

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.io.process_pool import usable_cores
from streetvision.models.backbone_spec import token_count
from streetvision.models.config import AUTO, ModelConfig
from streetvision.models.device import has_fast_bf16, pick_device
from streetvision.models.module import Classifier
from streetvision.pipeline.input_size import TOKENS
from streetvision.training.config import LearningConfig, TrainingConfig


def log_auto_settings(context: Context, config: LearningConfig, *, section: str) -> None:
    """Print the automatic settings of `config`, whose configuration section is `section`, and of the loader."""
    for setting, reason in [*_loader_settings(context), *_training_settings(config, section)]:
        context.progress.auto_setting(setting, reason)


def _loader_settings(context: Context) -> Iterator[tuple[str, str]]:
    loader, cores = context.settings(LoaderConfig), usable_cores()
    if loader.num_workers is None:
        reason = f"{cores} cores, 2 of them for the model" if loader.worker_count else f"{cores} cores, for the model"
        yield f"loader.num_workers={loader.worker_count}", reason


def _training_settings(config: LearningConfig, section: str) -> Iterator[tuple[str, str]]:
    device = pick_device()
    if not (isinstance(config, TrainingConfig) and config.mode == "frozen") and config.precision == "auto":
        fast = has_fast_bf16(device)
        reason = f"this {device.type} {'computes' if fast else 'does not compute'} in bf16 natively"
        yield f"{section}.mixed_precision.enabled={'true' if fast else 'false'}", reason


def log_image_size(context: Context, classifier: Classifier) -> None:
    """Print the size of the input if it was chosen automatically."""
    config, spec = context.settings(ModelConfig), classifier.backbone.spec
    if config.image_size == AUTO:
        height, width = spec.image_size
        images = [(row.height, row.width) for row in context.rows(Split.TRAIN)]
        aspect = float(np.exp(np.median([np.log(w / h) for h, w in images])))
        patches = token_count(spec.image_size, spec.patch_size)
        tokens = TOKENS if config.image_tokens == AUTO else config.image_tokens
        context.progress.auto_setting(
            f"model.image_size=[{height},{width}]",
            f"median aspect ratio of TRAIN {aspect:.2f}; {patches} patches of {spec.patch_size} px; "
            f"model.image_tokens={tokens}",
        )

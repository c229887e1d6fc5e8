"""Which parameters each fine-tuning mode trains, and the learning rate of layers by their depth."""

from collections.abc import Callable, Mapping

from torch import nn

from streetvision.models.adapters import attach_adapters, block_names, last_blocks
from streetvision.models.module import Classifier
from streetvision.training.config import AutoConfig, LastNConfig, PeftConfig, TrainingConfig


def prepare(classifier: Classifier, config: TrainingConfig) -> int:
    """Mark the parameters that `config.mode` trains as trainable, and no other; returns how many numbers these are."""
    MODES[config.mode](classifier, config)
    return sum(p.numel() for p in classifier.parameters() if p.requires_grad)


def _frozen(classifier: Classifier, _: TrainingConfig) -> None:
    classifier.backbone.requires_grad_(False)


def _peft(classifier: Classifier, config: TrainingConfig) -> None:
    assert isinstance(config, PeftConfig)
    attach_adapters(classifier.backbone, config.adapter)


def _last_n(classifier: Classifier, config: TrainingConfig) -> None:
    assert isinstance(config, LastNConfig)
    _train_last_blocks(classifier, config.last_blocks)


def _auto(classifier: Classifier, config: TrainingConfig) -> None:
    assert isinstance(config, AutoConfig)
    backbone = classifier.backbone
    if sum(p.numel() for p in backbone.parameters()) > LARGE_BACKBONE:
        _train_last_blocks(classifier, min(AUTO_BLOCKS, len(block_names(backbone.spec.lora_targets))))


def _train_last_blocks(classifier: Classifier, count: int) -> None:
    """Train the last blocks, a layer that merges patches for the first of them, and all layers after the blocks."""
    backbone = classifier.backbone
    trained = last_blocks(backbone.spec.lora_targets, count)
    frozen_blocks = len(block_names(backbone.spec.lora_targets)) - len(trained)
    for name, depth in _parameter_depths(backbone).items():
        parameter = backbone.get_parameter(name)
        # A parameter that the backbone itself keeps fixed (a mask token) stays fixed.
        parameter.requires_grad_(parameter.requires_grad and depth > frozen_blocks)


def _full(_: Classifier, __: TrainingConfig) -> None:
    pass


LARGE_BACKBONE, AUTO_BLOCKS = 100_000_000, 4
"""training.mode=auto: of a backbone with more parameters, only so many blocks are trained, to save memory."""

MODES: Mapping[str, Callable[[Classifier, TrainingConfig], None]] = {
    "auto": _auto,
    "frozen": _frozen,
    "peft": _peft,
    "last_n": _last_n,
    "full": _full,
}
"""training.mode -> function that marks the trainable parameters."""


def rate_scales(classifier: Classifier, decay: float) -> dict[str, float]:
    """Return parameter name -> factor of the learning rate, which falls by `decay` per block from the head down.

    The factor is 1 for the head, `decay` for the last block, and decay ** (blocks + 1) before the first block.

    References:
        Layer-wise decay: Bao et al. 2021, BEiT, arXiv 2106.08254, appendix.
    """
    blocks = len(block_names(classifier.backbone.spec.lora_targets))
    depths = {f"backbone.{name}": depth for name, depth in _parameter_depths(classifier.backbone).items()}
    return {name: decay ** (blocks + 1 - depths.get(name, blocks + 1)) for name, _ in classifier.named_parameters()}


def _parameter_depths(backbone: nn.Module) -> dict[str, int]:
    """Return parameter name -> depth: 0 before the first of n blocks, i in block i (from 1), n + 1 after the last.

    A layer between two blocks, such as one that merges patches, has the depth of the block after it.
    """
    blocks = block_names(backbone.spec.lora_targets)  # type: ignore[arg-type, union-attr]
    depths: dict[str, int] = {}
    next_depth = len(blocks) + 1
    # From the last parameter to the first, so that the block after a layer is known.
    for name in reversed([name for name, _ in backbone.named_parameters()]):
        block = next((i for i, block in enumerate(blocks, start=1) if name.startswith(f"{block}.")), None)
        next_depth = block or next_depth
        depths[name] = block or (next_depth if next_depth > 1 else 0)
    return depths

"""What learns in each mode, and how fast the layers of different depth do."""

from collections.abc import Callable, Mapping

from torch import nn

from streetvision.models.adapters import attach_adapters, block_names, last_blocks
from streetvision.models.module import Classifier
from streetvision.training.config import LastNConfig, PeftConfig, TrainingConfig


def prepare(classifier: Classifier, config: TrainingConfig) -> int:
    """Let what `config.mode` names ask for gradients and nothing else; returns the number of parameters that learn."""
    MODES[config.mode](classifier, config)
    return sum(p.numel() for p in classifier.parameters() if p.requires_grad)


def _frozen(classifier: Classifier, _: TrainingConfig) -> None:
    classifier.backbone.requires_grad_(False)


def _peft(classifier: Classifier, config: TrainingConfig) -> None:
    assert isinstance(config, PeftConfig)
    attach_adapters(classifier.backbone, config.adapter)


def _last_n(classifier: Classifier, config: TrainingConfig) -> None:
    """The last blocks, what merges patches for the first of them, and all that comes after: most end in a norm."""
    backbone = classifier.backbone
    assert isinstance(config, LastNConfig)
    opened = last_blocks(backbone.spec.lora_targets, config.last_blocks)
    still = len(block_names(backbone.spec.lora_targets)) - len(opened)
    for name, depth in _by_depth(backbone).items():
        parameter = backbone.get_parameter(name)
        parameter.requires_grad_(parameter.requires_grad and depth > still)


def _full(_: Classifier, __: TrainingConfig) -> None:
    pass


MODES: Mapping[str, Callable[[Classifier, TrainingConfig], None]] = {
    "frozen": _frozen,
    "peft": _peft,
    "last_n": _last_n,
    "full": _full,
}
"""Mode -> what marks the parameters that learn."""


def rate_scales(classifier: Classifier, decay: float) -> dict[str, float]:
    """Parameter name -> factor of the learning rate: decay ** (blocks between it and the head).

    Layer-wise decay as for BEiT (Bao et al., arXiv 2106.08254, appendix): the head learns at 1, the last block at
    `decay`, what comes before the first block at decay ** (blocks + 1).
    """
    blocks = len(block_names(classifier.backbone.spec.lora_targets))
    depths = {f"backbone.{name}": depth for name, depth in _by_depth(classifier.backbone).items()}
    return {name: decay ** (blocks + 1 - depths.get(name, blocks + 1)) for name, _ in classifier.named_parameters()}


def _by_depth(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> 0 before the first block, i in the i-th of n (from 1) or just before it, n + 1 after the last.

    What stands between two blocks, such as the merging of patches, goes with the one that reads it.
    """
    blocks = block_names(backbone.spec.lora_targets)  # type: ignore[arg-type, union-attr]
    depths: dict[str, int] = {}
    follows = len(blocks) + 1
    for name in reversed([name for name, _ in backbone.named_parameters()]):
        inside = next((i for i, block in enumerate(blocks, start=1) if name.startswith(f"{block}.")), None)
        follows = inside or follows
        depths[name] = inside or (follows if follows > 1 else 0)
    return depths

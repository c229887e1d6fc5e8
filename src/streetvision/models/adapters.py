"""Adapters of the PEFT library: low-rank changes of the backbone's linear layers, merged before saving."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError, StreetVisionError, unknown_name
from streetvision.models.config import AdapterConfig
from streetvision.models.module import Classifier
from streetvision.models.network import Backbone

MAX_MERGE_ERROR = 1e-4
"""Largest change of a logit that merging may cause; in fp32 it is about a hundred times smaller."""


def attach_adapters(
    backbone: Backbone, config: AdapterConfig, *, exclude_blocks: Sequence[str] = ()
) -> tuple[str, ...]:
    """Attach adapters to linear layers of the backbone and freeze all its other parameters.

    The weights of the adapters are drawn from torch's global generator.

    Args:
        backbone: Changed in place.
        config: Kind and size of the adapters, and which layers get one.
        exclude_blocks: Names of blocks whose layers get no adapter.

    Returns:
        The names of the adapted layers.

    Raises:
        ConfigError: No layer matches, or the backbone has fewer blocks than configured.
    """
    from peft import LoraConfig, inject_adapter_in_model

    excluded = _prefixes(exclude_blocks)
    names = _matching_layers([name for name in backbone.spec.lora_targets if not name.startswith(excluded)], config)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=config.dropout,
        target_modules=list(names),
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        init_lora_weights=config.init_lora_weights,
    )
    inject_adapter_in_model(settings, backbone)
    return names


def merge_adapters(
    classifier: Classifier, images: Tensor, *, settings: str = "training.learning_rate or training.adapter.alpha"
) -> float:
    """Merge every adapter into its layer, in place and in fp32.

    Afterwards the state dict has the names that it had before `attach_adapters`.

    Args:
        classifier: Converted to fp32 and to eval mode.
        images: uint8 (B, 3, h, w), on which the logits before and after are compared.
        settings: What to lower when the adapter weights are too large, for the hint of the error.

    Returns:
        The largest absolute change of a logit.

    Raises:
        StreetVisionError: The change is above MAX_MERGE_ERROR.
    """
    from peft.tuners.lora import LoraLayer

    classifier.float().eval()
    with torch.inference_mode():
        before = classifier(images)
    for name, layer in list(classifier.backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            assert isinstance(layer, nn.Module)
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(classifier.backbone.get_submodule(parent), child, layer.get_base_layer())
    with torch.inference_mode():
        error = float((classifier(images) - before).abs().max())
    # Negated, so that NaN fails as well.
    if not error <= MAX_MERGE_ERROR:
        raise StreetVisionError(
            f"merging the adapters changes a logit by {error:.1e}; at most {MAX_MERGE_ERROR:.0e} is allowed",
            f"the adapter weights are too large: lower {settings}",
        )
    return error


def merged_state_dict(
    classifier: Classifier, trained: Mapping[str, Tensor], images: Tensor | None
) -> tuple[dict[str, Tensor], float | None]:
    """Return the state dict of the plain classifier after a training, on the CPU and with adapters merged.

    Args:
        classifier: The classifier that was trained; it is not changed.
        trained: Values of the parameters that were trained; they replace those of `classifier`.
        images: uint8 (B, 3, h, w) for `merge_adapters`; None if the classifier has no adapters.

    Returns:
        The state dict, and the largest change of a logit by merging (None without adapters).
    """
    state = {**{name: value.cpu().clone() for name, value in classifier.state_dict().items()}, **trained}
    if images is None:
        return state, None
    merged = copy.deepcopy(classifier).cpu()
    merged.load_state_dict(state, strict=True)
    error = merge_adapters(merged, images)
    return dict(merged.state_dict()), error


def block_names(layers: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the backbone's blocks, in the order of `layers`, the names of its linear layers.

    A block is the part of a name up to its last number: `network.blocks.3.attn.qkv` is in `network.blocks.3`.
    """
    blocks = dict.fromkeys(match[1] for name in layers if (match := re.match(r"(.*\.\d+)\.", name)))
    # A stage that contains other blocks is not a block itself.
    return tuple(name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks))


def last_blocks(layers: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the names of the last `count` blocks; raises ConfigError if there are fewer."""
    blocks = block_names(layers)
    if count > len(blocks):
        raise ConfigError(
            f"the last {count} blocks are configured, but this backbone has {len(blocks)} blocks",
            f"set training.last_blocks or phase4a.unfreeze_blocks to at most {len(blocks)}",
        )
    return blocks[-count:]


def _matching_layers(layers: Sequence[str], config: AdapterConfig) -> tuple[str, ...]:
    names = tuple(layers)
    if config.last_blocks is not None:
        blocks = _prefixes(last_blocks(layers, config.last_blocks))
        names = tuple(name for name in names if name.startswith(blocks))
    if not isinstance(config.targets, str):
        endings = {name.rpartition(".")[2] for name in layers}
        for target in config.targets:
            if target not in endings:
                raise unknown_name("linear layer", target, endings)
        names = tuple(name for name in names if name.rpartition(".")[2] in config.targets)
    if not names:
        raise ConfigError("this backbone has no linear layer to adapt", "use training=last_n or training=full")
    return names


def _prefixes(blocks: Iterable[str]) -> tuple[str, ...]:
    # With the dot, because blocks.1 is not a parent of blocks.10.
    return tuple(f"{block}." for block in blocks)

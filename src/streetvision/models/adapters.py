"""Adapters through the PEFT library: low-rank changes of the backbone's linear layers, merged before saving."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError, StreetVisionError, unknown_name
from streetvision.models.config import ADAPTERS, AdapterConfig
from streetvision.models.module import Classifier
from streetvision.models.network import Backbone

MAX_MERGE_ERROR = 1e-4
"""Largest difference of a logit that merging may make; fp32 stays a hundred times below it."""


def attach(backbone: Backbone, config: AdapterConfig, *, besides: Sequence[str] = ()) -> tuple[str, ...]:
    """Put adapters on the backbone's linear layers and let nothing else of it learn; returns the layers' names.

    Layers inside the blocks `besides` get none. Weights are drawn from torch's global generator. Raises ConfigError
    when no layer is left or has the asked names, or when the backbone has fewer blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    others = tuple(f"{block}." for block in besides)
    names = _chosen([name for name in backbone.spec.lora_targets if not name.startswith(others)], config)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=config.dropout,
        target_modules=list(names),
        **ADAPTERS[config.method],  # type: ignore[arg-type]
    )
    inject_adapter_in_model(settings, backbone)
    return names


def merge(classifier: Classifier, images: Tensor) -> float:
    """Fold every adapter into the layer that it changes, in fp32; returns the largest change of a logit of `images`.

    Afterwards the state dict has the names that it had before `attach`. Raises StreetVisionError above MAX_MERGE_ERROR.
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
    if not error <= MAX_MERGE_ERROR:
        raise StreetVisionError(
            f"merging the adapters moves a logit by {error:.1e}, and {MAX_MERGE_ERROR:.0e} is allowed",
            "lower training.learning_rate or training.adapter.alpha: weights this large are not to be trusted",
        )
    return error


def block_names(targets: Iterable[str]) -> tuple[str, ...]:
    """The blocks of a backbone in the order of their depth, from the names of its linear layers.

    A block is what stands before the last number of a name: network.blocks.3.attn.qkv lies in network.blocks.3.
    """
    found = dict.fromkeys(match[1] for name in targets if (match := re.match(r"(.*\.\d+)\.", name)))
    return tuple(name for name in found if not any(other.startswith(f"{name}.") for other in found))


def last_blocks(targets: Sequence[str], count: int) -> tuple[str, ...]:
    """The last `count` blocks; raises ConfigError when there are fewer."""
    blocks = block_names(targets)
    if count > len(blocks):
        raise ConfigError(
            f"the last {count} blocks were asked for, and this backbone has {len(blocks)}", "ask for fewer last_blocks"
        )
    return blocks[-count:]


def _chosen(targets: Sequence[str], config: AdapterConfig) -> tuple[str, ...]:
    names = tuple(targets)
    if config.last_blocks is not None:
        blocks = last_blocks(targets, config.last_blocks)
        names = tuple(name for name in names if name.startswith(tuple(f"{block}." for block in blocks)))
    if not isinstance(config.targets, str):
        ends = {name.rpartition(".")[2] for name in targets}
        for end in config.targets:
            if end not in ends:
                raise unknown_name("linear layer", end, ends)
        names = tuple(name for name in names if name.rpartition(".")[2] in config.targets)
    if not names:
        raise ConfigError("this backbone has no linear layer to adapt", "take training=last_n or training=full")
    return names

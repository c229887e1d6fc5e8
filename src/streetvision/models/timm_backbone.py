"""Backbones of the timm library, by name: vision transformers, Swin and convolutional networks."""

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError
from streetvision.io.resize import ImageSize
from streetvision.io.tensors import check_keys, load_into, load_state
from streetvision.models.backbone_spec import (
    Architecture,
    BackboneSpec,
    Channels,
    SizeRule,
    check_image_size,
    native_size,
    one_line,
    token_count,
)
from streetvision.models.network import Backbone, Probe, check_parameters, probe, seeded

HEADS = ("attn_pool", "classifier", "conv_head", "fc", "fc_norm", "head", "head_dist", "norm_head")
"""Names that timm's networks use for the layers after the tokens. Those that forward_features skips are removed."""


class TimmArchitecture(Architecture):
    """Description of a timm backbone: everything that a bundle contains apart from the weights."""

    source: Literal["timm"] = "timm"
    name: str
    """A name in timm.list_models(), with or without a pretrained tag."""


def build_timm(description: TimmArchitecture, *, max_parameters: int | None) -> Backbone:
    """Build a backbone with random weights; raises ConfigError for a name or a size that timm cannot build."""
    _check_name(description.name)
    spec, unused = _inspect(
        description.name, lambda *_: description.image_size, (description.mean, description.std), max_parameters
    )
    with seeded(0):
        network = _create(description.name)
    return _finish(network, spec, unused)


def load_timm(
    name: str, *, weights: Path | None, pretrained: bool, seed: int, size_rule: SizeRule = native_size
) -> Backbone:
    """Load a backbone with weights from a file or from the hub, or with random weights.

    Args:
        name: A name in timm.list_models(), with or without a pretrained tag.
        weights: A file with exactly the keys of the network, either with its whole classifier or without it.
        pretrained: Download the weights from the hub.
        seed: Seed of random weights.
        size_rule: Chooses the size of the input, to which position embeddings are resampled after loading, from the
            patch size and timm's own size.

    Raises:
        ConfigError: The name does not exist, the size is not possible, or the download fails.
        ArtifactError: The weights do not fit.
    """
    _check_name(name)
    spec, unused = _inspect(name, size_rule, None, None)
    with seeded(seed):
        network = _download(name) if pretrained else _create(name)
        if weights is not None:
            _load_weights(network, weights)
    return _finish(network, spec, unused)


def _check_name(name: str) -> None:
    """Raise ConfigError with the nearest names unless timm itself has a model `name`: no hub, no folder."""
    import timm

    # timm.create_model accepts names on the hub and folders as well, which are not allowed here.
    models = timm.list_models()
    model = name.partition(".")[0]
    if model not in models:
        nearest = get_close_matches(name, models, n=5)
        hint = f"nearest names: {', '.join(nearest)}" if nearest else "timm.list_models() lists all names"
        raise ConfigError(f"timm has no model {name!r}", hint)
    tags = timm.list_models(f"{model}.*", pretrained=True)
    if "." in name and name not in tags:
        raise ConfigError(f"timm has no weights {name!r}", f"choose one of: {', '.join(tags) or 'none'}")


def _tokens(network: nn.Module, pixel_values: Tensor, layers: int) -> tuple[Tensor, ...]:
    """Tokens (B, T, D) of the last blocks, or of the last feature map, which is in NHWC or NCHW order."""
    if layers > 1:
        blocks = network.forward_intermediates(  # type: ignore[operator]
            pixel_values,
            indices=layers,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        return tuple(torch.cat([prefix, patches], dim=1) for patches, prefix in blocks)
    features: Tensor = network.forward_features(pixel_values)  # type: ignore[operator]
    if features.ndim == 3:
        return (features,)
    if str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        return (features.flatten(1, 2),)
    return (features.flatten(2).transpose(1, 2),)


def _inspect(
    name: str, size_rule: SizeRule, mean_std: tuple[Channels, Channels] | None, max_parameters: int | None
) -> tuple[BackboneSpec, tuple[str, ...]]:
    """The spec, and the names of the modules to remove, from a copy of the network on the meta device."""
    # The meta device takes no memory, so the size is checked before anything is allocated.
    with torch.device("meta"), seeded(0):
        network: Any = _create(name)
    check_parameters(network, max_parameters)
    settings = network.pretrained_cfg
    levels = getattr(network, "feature_info", None)
    if not levels:
        raise ConfigError(f"timm's {name!r} does not report its stride", "choose another backbone")
    patch_size = int(levels[-1]["reduction"])
    size = size_rule(patch_size, tuple(settings["input_size"][-2:]))
    check_image_size(size, patch_size)

    result = _probe_at(network, name, size)
    prefix_tokens = getattr(network, "num_prefix_tokens", 0)
    # Pooling and patch labels need one token per patch.
    if result.tokens != prefix_tokens + token_count(size, patch_size):
        raise ConfigError(
            f"timm's {name!r} gives no grid of tokens at image_size={list(size)}", "choose another backbone or size"
        )
    mean, std = mean_std or (settings["mean"], settings["std"])
    description = TimmArchitecture(name=name, image_size=size, mean=mean, std=std)
    spec = BackboneSpec(
        embed_dim=result.embed_dim,
        patch_size=patch_size,
        layers=_equal_blocks(network),
        prefix_tokens=prefix_tokens,
        class_token=prefix_tokens > 0 and getattr(network, "cls_token", None) is not None,
        image_size=size,
        mean=description.mean,
        std=description.std,
        lora_targets=result.lora_targets,
        architecture=description.model_dump(mode="json"),
    )
    used = {head for head in HEADS for module in result.called if module == head or module.startswith(f"{head}.")}
    return spec, tuple(head for head in HEADS if hasattr(network, head) and head not in used)


def _equal_blocks(network: Any) -> int:
    """Number of last blocks that return tokens of the same shape; 1 for a network of feature maps."""
    if not (hasattr(network, "blocks") and hasattr(network, "num_prefix_tokens")):
        return 1
    shapes = [(level["num_chs"], level["reduction"]) for level in network.feature_info]
    return sum(shape == shapes[-1] for shape in shapes)


def _probe_at(network: Any, name: str, image_size: ImageSize) -> Probe:
    try:
        with torch.device("meta"):
            _resize(network, image_size)
        return probe(network, _tokens, image_size)
    except Exception as error:  # timm asserts sizes, or its arithmetic fails with an error of any class
        height, width = network.pretrained_cfg["input_size"][-2:]
        raise ConfigError(
            f"timm's {name!r} does not run at image_size={list(image_size)}: {one_line(error)}",
            f"it was trained at {height} x {width}: set model.image_size=native, and another phase4c.mode than dense",
        ) from error


def _create(name: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False)
    return network


def _download(name: str) -> nn.Module:
    import timm

    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot download the weights of timm's {name!r} from the hub: {one_line(error)}",
            "check the network, or use a local file: weights=path/to/model.safetensors",
        ) from error
    return network


def _load_weights(network: Any, path: Path) -> None:
    state = load_state(path)
    own: Mapping[str, Tensor] = network.state_dict()
    classifiers = network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    head = {key: value for key, value in own.items() if key.startswith(prefixes)}
    body = {key: value for key, value in state.items() if key not in head}
    # The classifier is removed later, so its number of classes does not matter, but a part of one is a damaged file.
    check_keys(own if len(body) < len(state) else own.keys() - head.keys(), state, source=repr(str(path)))
    load_into(network, {**body, **head}, source=repr(str(path)))


def _at_size(network: Any, image_size: ImageSize, *, name: str) -> nn.Module:
    """The network for images of another size; its weights are shared, except for position embeddings."""
    with torch.device("meta"), seeded(0):
        inspected: Any = _create(name)
    _probe_at(inspected, name, image_size)
    if not network.pretrained_cfg.get("fixed_input_size"):
        return network  # type: ignore[no-any-return]
    resized: Any = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    resized.set_input_size(img_size=image_size)
    return resized  # type: ignore[no-any-return]


def _resize(network: Any, image_size: ImageSize) -> None:
    """Fit position embeddings and windows of a network of fixed size; other networks accept any size."""
    settings = network.pretrained_cfg
    if settings.get("fixed_input_size") and tuple(settings["input_size"][-2:]) != image_size:
        network.set_input_size(img_size=image_size)


def _finish(network: nn.Module, spec: BackboneSpec, unused: tuple[str, ...]) -> Backbone:
    _resize(network, spec.image_size)
    for name in unused:
        setattr(network, name, nn.Identity())
    return Backbone(network, spec, _tokens, partial(_at_size, name=str(spec.architecture["name"])))

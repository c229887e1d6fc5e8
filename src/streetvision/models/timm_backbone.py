"""Backbones of the timm library, by name: vision transformers, Swin and convolutional networks."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError
from streetvision.io.tensors import check_keys, load_into, load_state
from streetvision.models.backbone_spec import Architecture, BackboneSpec, Channels, check_image_size, one_line
from streetvision.models.network import Backbone, Probe, check_parameters, probe, seeded

HEADS = ("attn_pool", "classifier", "conv_head", "fc", "fc_norm", "head", "head_dist", "norm_head")
"""Where timm's networks keep what comes after the tokens. Those that forward_features does not run are removed."""


class TimmArchitecture(Architecture):
    """How to build a timm backbone: all that a bundle carries beside the weights."""

    source: Literal["timm"] = "timm"
    """Which library."""
    name: str
    """A name that timm.list_models() knows, with or without a pretrained tag."""


def build_timm(description: TimmArchitecture, *, max_parameters: int | None) -> Backbone:
    """A backbone with random weights; raises ConfigError for a name or a size that timm cannot build."""
    check_name(description.name)
    described = (description.mean, description.std)
    spec, unused = _inspect(description.name, description.image_size, described, max_parameters)
    with seeded(0):
        network = _create(description.name)
    return _finish(network, spec, unused)


def load_timm(name: str, *, weights: Path | None, pretrained: bool, image_size: int | None, seed: int) -> Backbone:
    """A backbone with weights from a file, from the hub (`pretrained`), or else drawn from `seed`.

    The keys of a file must be the network's own, with its classifier or with none of it; position embeddings are
    resampled to `image_size` after loading. Raises ConfigError for a name, size or download that fails, ArtifactError
    for weights that do not fit.
    """
    check_name(name)
    spec, unused = _inspect(name, image_size, None, None)
    with seeded(seed):
        network = _download(name) if pretrained else _create(name)
        if weights is not None:
            _load_weights(network, weights)
    return _finish(network, spec, unused)


def check_name(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm itself knows `name`: no hub, no folder."""
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = get_close_matches(name, known, n=5)
        hint = f"the nearest names: {', '.join(near)}" if near else "timm.list_models() names them all"
        raise ConfigError(f"timm has no model {name!r}", hint)
    tags = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
    if "." in name and name not in tags:
        raise ConfigError(f"timm has no weights called {name!r}", f"choose one of: {', '.join(tags) or 'none'}")


def _read(network: nn.Module, pixel_values: Tensor) -> Tensor:
    """Tokens (B, T, D) from tokens, or from a feature map in either order of axes."""
    features: Tensor = network.forward_features(pixel_values)  # type: ignore[operator]
    if features.ndim == 3:
        return features
    if str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _inspect(
    name: str, image_size: int | None, channels: tuple[Channels, Channels] | None, max_parameters: int | None
) -> tuple[BackboneSpec, tuple[str, ...]]:
    """The spec, and the names of the parts to remove, from a copy on the meta device."""
    with torch.device("meta"), seeded(0):
        network: Any = _create(name)
    check_parameters(network, max_parameters)
    settings = network.pretrained_cfg
    size = settings["input_size"][-1] if image_size is None else image_size
    patch_size = _patch_size(network, name)
    check_image_size(size, patch_size)
    seen = _probe_at(network, name, size)
    prefix_tokens = getattr(network, "num_prefix_tokens", 0)
    if seen.tokens != prefix_tokens + (size // patch_size) ** 2:
        raise ConfigError(
            f"timm's {name!r} gives no grid of tokens at {size} pixels", "choose another backbone or size"
        )
    mean, std = channels or (settings["mean"], settings["std"])
    description = TimmArchitecture(name=name, image_size=size, mean=mean, std=std)
    spec = BackboneSpec(
        embed_dim=seen.embed_dim,
        patch_size=patch_size,
        prefix_tokens=prefix_tokens,
        class_token=prefix_tokens > 0 and getattr(network, "cls_token", None) is not None,
        image_size=size,
        mean=description.mean,
        std=description.std,
        lora_targets=seen.lora_targets,
        architecture=description.model_dump(mode="json"),
    )
    return spec, tuple(part for part in HEADS if hasattr(network, part) and not _ran(part, seen.called))


def _probe_at(network: Any, name: str, image_size: int) -> Probe:
    try:
        with torch.device("meta"):
            _resize(network, image_size)
        return probe(network, _read, image_size)
    # timm asserts, and raises what its arithmetic runs into.
    except Exception as error:
        native = network.pretrained_cfg["input_size"][-1]
        raise ConfigError(
            f"timm's {name!r} does not run at {image_size} pixels: {one_line(error)}",
            f"its own size is {native}: leave image_size out",
        ) from error


def _ran(part: str, called: frozenset[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for name in called)


def _patch_size(network: Any, name: str) -> int:
    levels = getattr(network, "feature_info", None)
    if not levels:
        raise ConfigError(f"timm's {name!r} does not tell its stride", "choose another backbone")
    return int(levels[-1]["reduction"])


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
            f"the weights of timm's {name!r} could not be had from the hub: {one_line(error)}",
            "check the network, or give a local file: weights=path/to/model.safetensors",
        ) from error
    return network


def _load_weights(network: Any, path: Path) -> None:
    state = load_state(path)
    own: Mapping[str, Tensor] = network.state_dict()
    names = network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    head = {key: value for key, value in own.items() if key.startswith(prefixes)}
    body = {key: value for key, value in state.items() if key not in head}
    # The classifier is removed afterwards, so its number of classes is free, but half of one is a damaged file.
    check_keys(own if len(body) < len(state) else own.keys() - head.keys(), state, source=repr(str(path)))
    load_into(network, {**body, **head}, source=repr(str(path)))


def _resize(network: Any, image_size: int) -> None:
    """Fit position embeddings and windows of a network of fixed size; the others take any size."""
    settings = network.pretrained_cfg
    if settings.get("fixed_input_size") and settings["input_size"][-1] != image_size:
        network.set_input_size(img_size=(image_size, image_size))


def _finish(network: nn.Module, spec: BackboneSpec, unused: tuple[str, ...]) -> Backbone:
    _resize(network, spec.image_size)
    for part in unused:
        setattr(network, part, nn.Identity())
    return Backbone(network, spec, _read)

"""Backbones of the transformers library: DINOv3 (ViT and ConvNeXt), DINOv2 and ViT."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError, ConfigError, unknown_name
from streetvision.io.tensors import check_keys
from streetvision.models.backbone_spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    BackboneSpec,
    Channels,
    check_image_size,
    one_line,
    read_description,
)
from streetvision.models.network import Backbone, Reader, check_parameters, probe, seeded

MAX_CONFIG_INTEGER = 65_536
MAX_LAYERS = 512

TOLERATED_UNEXPECTED = ("classifier.", "pooler.")
"""Parts of a checkpoint that a backbone has no place for: an ImageNet head, and the pooler that ViT puts before it."""

_ANYTHING_A_LIBRARY_RAISES = Exception
"""transformers answers bad values with whatever its arithmetic runs into, ZeroDivisionError and KeyError included."""


def _read(network: nn.Module, pixel_values: Tensor) -> Tensor:
    tokens: Tensor = network(pixel_values=pixel_values).last_hidden_state
    return tokens


def _read_interpolating(network: nn.Module, pixel_values: Tensor) -> Tensor:
    # At the native size ViT returns its stored position embeddings as they are.
    tokens: Tensor = network(pixel_values=pixel_values, interpolate_pos_encoding=True).last_hidden_state
    return tokens


@dataclass(frozen=True)
class Family:
    """One model_type: the two transformers classes and how to call them."""

    config: str
    model: str
    read: Reader = _read
    """DINOv3 computes positions for any size (RoPE, convolutions), DINOv2 interpolates unasked, ViT when asked."""
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    options: Mapping[str, object] = field(default_factory=dict)
    pretraining: tuple[str, ...] = ()
    """Fields that move positions at random in train mode, once a call; off here, so that a step gives the same however
    many processes or parts see its images."""


FAMILIES: Mapping[str, Family] = {
    "dinov3_vit": Family(
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        pretraining=("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
    ),
    # Its tokens are the pooled map as CLS, then the map, so it has one prefix token.
    "dinov3_convnext": Family("DINOv3ConvNextConfig", "DINOv3ConvNextModel"),
    "dinov2": Family("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": Family("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "vit": Family("ViTConfig", "ViTModel", _read_interpolating, (0.5,) * 3, (0.5,) * 3, {"add_pooling_layer": False}),
}
"""model_type -> how to build it. Nothing else is built, and code from a repository is never run."""


class TransformersArchitecture(Architecture):
    """How to build a transformers backbone: all that a bundle carries beside the weights."""

    source: Literal["transformers"] = "transformers"
    """Which library."""
    config: dict[str, object]
    """model_type and the fields that its configuration class declares."""


def build_transformers(description: TransformersArchitecture, *, max_parameters: int | None, seed: int = 0) -> Backbone:
    """A backbone with weights drawn from `seed`; raises ConfigError or ArtifactError for what cannot be built."""
    family = _family(description.config)
    spec = _spec(description, max_parameters)
    with _quiet(), seeded(seed):
        network = _network(family, _library_config(description.config))
    return Backbone(network, spec, family.read)


def load_transformers(name: str, image_size: int | None) -> Backbone:
    """A backbone with its weights from a local folder, which stays offline, or from the hub by name.

    Weights are safetensors only and must fit key by key. Raises ConfigError for a name that leads nowhere or a
    model_type that is not allowed, ArtifactError for weights that do not fit.
    """
    local = _is_folder(name)
    raw = _fetch_config(name, local)
    family = _family(raw)
    fields = {key: raw[key] for key in _declared(family) if key in raw}
    config = _library_config({"model_type": raw["model_type"], **fields})
    mean, std = _normalisation(name, family, local)
    values = {"config": _describe(config), "image_size": image_size or config.image_size, "mean": mean, "std": std}
    description = read_description(TransformersArchitecture, values, source=f"the backbone {name!r}")
    spec = _spec(description, None)
    return Backbone(_fetch_network(name, family, config, local), spec, family.read)


def _spec(description: TransformersArchitecture, max_parameters: int | None) -> BackboneSpec:
    family = _family(description.config)
    config = _library_config(description.config)
    patch_size = _patch_size(config)
    check_image_size(description.image_size, patch_size)
    with _quiet(), torch.device("meta"), seeded(0):
        network = _network(family, config)
    check_parameters(network, max_parameters)
    try:
        seen = probe(network, family.read, description.image_size)
    except _ANYTHING_A_LIBRARY_RAISES as error:
        raise ArtifactError(f"the {family.model} that was described cannot run: {one_line(error)}") from error
    return BackboneSpec(
        embed_dim=seen.embed_dim,
        patch_size=patch_size,
        prefix_tokens=1 + getattr(config, "num_register_tokens", 0),
        class_token=True,
        image_size=description.image_size,
        mean=description.mean,
        std=description.std,
        lora_targets=seen.lora_targets,
        architecture=description.model_dump(mode="json"),
    )


def _family(config: Mapping[str, object]) -> Family:
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise unknown_name("transformers model_type", model_type, FAMILIES)
    return FAMILIES[model_type]


def _declared(family: Family) -> list[str]:
    """The architecture's own fields. Those of the base class can make the library fetch code (attention kernels)."""
    import transformers

    own = getattr(transformers, family.config).__annotations__
    return [name for name in own if not name.startswith("_")]


def _library_config(values: Mapping[str, object]) -> Any:
    """The transformers configuration object; raises ArtifactError that names the field."""
    import transformers

    family = _family(values)
    fields = {key: value for key, value in values.items() if key != "model_type"}
    if foreign := sorted(set(fields) - set(_declared(family))):
        raise ArtifactError(f"a {family.config} has no field {', '.join(foreign)}")
    for key, value in fields.items():
        _check_bounds(key, value)
    try:
        config = getattr(transformers, family.config)(**fields)
    except _ANYTHING_A_LIBRARY_RAISES as error:
        raise ArtifactError(f"not a valid {family.config}: {one_line(error)}") from error
    for key in ("image_size", "patch_size"):
        if not isinstance(getattr(config, key, 1), int) or getattr(config, key, 1) < 1:
            raise ArtifactError(f"{family.config}.{key} must be one positive number: images and patches are square")
    for key in family.pretraining:
        setattr(config, key, None)
    return config


def _check_bounds(key: str, value: object) -> None:
    """Refuse numbers that would exhaust memory before parameters can be counted."""
    numbers = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
    if not all(math.isfinite(v) and abs(v) <= MAX_CONFIG_INTEGER for v in numbers):
        raise ArtifactError(f"{key} = {value!r} is out of bounds: at most {MAX_CONFIG_INTEGER}")
    if key in ("num_hidden_layers", "depths") and sum(numbers) > MAX_LAYERS:
        raise ArtifactError(f"{key} = {value!r} is out of bounds: at most {MAX_LAYERS} layers")


def _describe(config: Any) -> dict[str, object]:
    family = FAMILIES[config.model_type]
    return {"model_type": config.model_type, **{key: getattr(config, key) for key in _declared(family)}}


def _patch_size(config: Any) -> int:
    """Pixels a token: the patch of a ViT, or the stem and the halvings after it of a ConvNeXt."""
    if hasattr(config, "patch_size"):
        return int(config.patch_size)
    return int(4 * 2 ** (len(config.depths) - 1))


def _network(family: Family, config: Any) -> nn.Module:
    import transformers

    try:
        network: nn.Module = getattr(transformers, family.model)(config, **family.options)
    except _ANYTHING_A_LIBRARY_RAISES as error:
        raise ArtifactError(f"the {family.model} that was described cannot be built: {one_line(error)}") from error
    return network


def _is_folder(name: str) -> bool:
    """Whether `name` is a local folder; raises ConfigError for a path that is not there."""
    if Path(name).is_dir():
        return True
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(
            f"there is no backbone folder {name!r}", "give a folder with config.json and model.safetensors"
        )
    return False


def _unreachable(name: str, local: bool, error: Exception) -> ConfigError:
    reason = one_line(error)
    if local:
        return ConfigError(
            f"the folder {name!r} holds no complete backbone: {reason}",
            "it needs config.json and model.safetensors, as save_pretrained writes them",
        )
    return ConfigError(
        f"the backbone {name!r} is no local folder and could not be had from the Hugging Face hub: {reason}",
        "check the name, the network and the access rights, or download it elsewhere and give its folder",
    )


def _fetch_config(name: str, local: bool) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        with _quiet():
            raw, _ = PreTrainedConfig.get_config_dict(name, local_files_only=local)
        if not raw:
            raise OSError("config.json is missing or empty")
    except (OSError, ValueError) as error:
        raise _unreachable(name, local, error) from error
    return dict(raw)


def _normalisation(name: str, family: Family, local: bool) -> tuple[Channels, Channels]:
    """Mean and std from the preprocessor beside the weights, else the family's."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with _quiet():
            values, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=local)
    except OSError:
        return family.mean, family.std
    if not values.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return values.get("image_mean") or family.mean, values.get("image_std") or family.std


def _fetch_network(name: str, family: Family, config: Any, local: bool) -> nn.Module:
    import transformers

    try:
        # Keys that are missing would be drawn at random; the check below refuses them, but not at the cost of the
        # global generator.
        with _quiet(bars=not local), seeded(0):
            network, info = getattr(transformers, family.model).from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=local,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **family.options,
            )
    except (OSError, ValueError) as error:
        raise _unreachable(name, local, error) from error
    _check_loading(info, source=repr(name))
    return network  # type: ignore[no-any-return]


def _check_loading(info: Mapping[str, Any], *, source: str) -> None:
    """Raise ArtifactError that names the keys which are missing, unexpected or misshapen."""
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(TOLERATED_UNEXPECTED)]
    check_keys(info["missing_keys"], unexpected, source=source)
    if wrong := sorted(info["mismatched_keys"]):
        shapes = ", ".join(f"{key} {tuple(found)}, expected {tuple(expected)}" for key, found, expected in wrong[:5])
        raise ArtifactError(
            f"{source} does not fit: {shapes}", "check that config.json and the weights belong together"
        )


@contextmanager
def _quiet(*, bars: bool = False) -> Iterator[None]:
    """Keep transformers from logging, and from drawing progress bars unless `bars`; restores both."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    verbosity, drawn = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if drawn:
            logging.enable_progress_bar()

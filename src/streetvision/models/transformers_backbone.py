"""Backbones of the transformers library: DINOv3 (ViT and ConvNeXt), DINOv2 and ViT."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
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
    SizeRule,
    check_image_size,
    native_size,
    one_line,
    read_description,
)
from streetvision.models.network import Backbone, ForwardFn, check_parameters, probe, seeded

MAX_CONFIG_INTEGER = 65_536
MAX_LAYERS = 512

IGNORED_PREFIXES = ("classifier.", "pooler.")
"""Parts of a checkpoint that a backbone does not have: an ImageNet head, and the pooler of ViT before it."""

_LIBRARY_ERRORS = Exception
"""For invalid values transformers raises errors of any class, for example ZeroDivisionError and KeyError."""


def _tokens(network: nn.Module, pixel_values: Tensor, layers: int, **options: object) -> tuple[Tensor, ...]:
    output = network(pixel_values=pixel_values, output_hidden_states=layers > 1, **options)
    if layers == 1:
        return (output.last_hidden_state,)
    norm: Any = network.norm if hasattr(network, "norm") else network.layernorm
    # Depending on the version of transformers, the last hidden state is given before or after the norm.
    earlier = output.hidden_states[-layers:-1]
    return (*(norm(tokens) for tokens in earlier), output.last_hidden_state)


def _tokens_interpolating(network: nn.Module, pixel_values: Tensor, layers: int) -> tuple[Tensor, ...]:
    # At its native size ViT returns the stored position embeddings unchanged.
    return _tokens(network, pixel_values, layers, interpolate_pos_encoding=True)


@dataclass(frozen=True)
class Family:
    """A model_type: its two transformers classes and how to call them."""

    config: str
    """Name of the configuration class."""
    model: str
    """Name of the model class."""
    forward_fn: ForwardFn = _tokens
    """Any image size works: DINOv3 computes positions, DINOv2 always interpolates them, ViT needs an argument."""
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    options: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of the model class."""
    position_augmentation: tuple[str, ...] = ()
    """Fields that move positions at random in train mode, once per call. They are switched off, so that a step does not
    depend on how its batch is divided."""


FAMILIES: Mapping[str, Family] = {
    "dinov3_vit": Family(
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        position_augmentation=("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
    ),
    # Its tokens are the pooled feature map as CLS and then the map, so it has one prefix token.
    "dinov3_convnext": Family("DINOv3ConvNextConfig", "DINOv3ConvNextModel"),
    "dinov2": Family("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": Family("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "vit": Family("ViTConfig", "ViTModel", _tokens_interpolating, (0.5,) * 3, (0.5,) * 3, {"add_pooling_layer": False}),
}
"""model_type -> how to build it. No other type is built, and code from a repository is never run."""


class TransformersArchitecture(Architecture):
    """Description of a transformers backbone: everything that a bundle contains apart from the weights."""

    source: Literal["transformers"] = "transformers"
    config: dict[str, object]
    """model_type, and fields that its configuration class declares."""


def build_transformers(description: TransformersArchitecture, *, max_parameters: int | None, seed: int = 0) -> Backbone:
    """Build a backbone with random weights from `seed`; raises ConfigError or ArtifactError if that is not possible."""
    family = _family(description.config)
    spec = _spec(description, max_parameters)
    with _quiet(), seeded(seed):
        network = _network(family, _library_config(description.config))
    return Backbone(network, spec, family.forward_fn)


def load_transformers(name: str, size_rule: SizeRule = native_size) -> Backbone:
    """Load a backbone with its weights from a local folder (offline) or from the Hugging Face hub.

    Args:
        name: A folder, or a name on the hub. Weights must be safetensors with exactly the keys of the network.
        size_rule: Chooses the size of the input from the patch size and the size in the configuration.

    Raises:
        ConfigError: The name does not exist or its model_type is not allowed.
        ArtifactError: The weights do not fit.
    """
    local = _is_folder(name)
    raw = _fetch_config(name, local)
    family = _family(raw)
    # Any other field of an untrusted config.json is dropped.
    fields = {key: raw[key] for key in _declared(family) if key in raw}
    config = _library_config({"model_type": raw["model_type"], **fields})
    mean, std = _normalisation(name, family, local)
    values = {
        "config": {"model_type": config.model_type, **{key: getattr(config, key) for key in _declared(family)}},
        "image_size": size_rule(_patch_size(config), (config.image_size, config.image_size)),
        "mean": mean,
        "std": std,
    }
    description = read_description(TransformersArchitecture, values, source=f"the backbone {name!r}")
    spec = _spec(description, None)
    return Backbone(_fetch_network(name, family, config, local), spec, family.forward_fn)


def _spec(description: TransformersArchitecture, max_parameters: int | None) -> BackboneSpec:
    return _measured_spec(json.dumps(description.model_dump()), max_parameters)


@lru_cache(maxsize=16)
def _measured_spec(written: str, max_parameters: int | None) -> BackboneSpec:
    """The properties of a description, which a run needs in each phase."""
    description = TransformersArchitecture.model_validate(json.loads(written))
    family = _family(description.config)
    config = _library_config(description.config)
    patch_size = _patch_size(config)
    check_image_size(description.image_size, patch_size)
    # The meta device takes no memory, so the size is checked before anything is allocated.
    with _quiet(), torch.device("meta"), seeded(0):
        network = _network(family, config)
    check_parameters(network, max_parameters)
    try:
        result = probe(network, family.forward_fn, description.image_size)
    except _LIBRARY_ERRORS as error:
        raise ArtifactError(f"the described {family.model} cannot run: {one_line(error)}") from error
    return BackboneSpec(
        embed_dim=result.embed_dim,
        patch_size=patch_size,
        layers=getattr(config, "num_hidden_layers", 1),
        prefix_tokens=1 + getattr(config, "num_register_tokens", 0),
        class_token=True,
        image_size=description.image_size,
        mean=description.mean,
        std=description.std,
        lora_targets=result.lora_targets,
        architecture=description.model_dump(mode="json"),
    )


def _patch_size(config: Any) -> int:
    # A ViT has a patch size; ConvNeXt has a stem of stride 4 and halves the map before each further stage.
    return int(config.patch_size if hasattr(config, "patch_size") else 4 * 2 ** (len(config.depths) - 1))


def _family(config: Mapping[str, object]) -> Family:
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise unknown_name("transformers model_type", model_type, FAMILIES)
    return FAMILIES[model_type]


def _declared(family: Family) -> list[str]:
    """The fields of the architecture itself. Those of the base class can make the library download code (kernels)."""
    import transformers

    own = getattr(transformers, family.config).__annotations__
    return [name for name in own if not name.startswith("_")]


def _library_config(values: Mapping[str, object]) -> Any:
    """The transformers configuration object; raises ArtifactError that names the invalid field."""
    import transformers

    family = _family(values)
    fields = {key: value for key, value in values.items() if key != "model_type"}
    if unknown := sorted(set(fields) - set(_declared(family))):
        raise ArtifactError(f"{family.config} has no field {', '.join(unknown)}")
    # Numbers that would exhaust memory are rejected here, because parameters can be counted only after building.
    for key, value in fields.items():
        numbers = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
        if not all(math.isfinite(v) and abs(v) <= MAX_CONFIG_INTEGER for v in numbers):
            raise ArtifactError(f"{key} = {value!r} is out of bounds: at most {MAX_CONFIG_INTEGER}")
        if key in ("num_hidden_layers", "depths") and sum(numbers) > MAX_LAYERS:
            raise ArtifactError(f"{key} = {value!r} is out of bounds: at most {MAX_LAYERS} layers")
    try:
        config = getattr(transformers, family.config)(**fields)
    except _LIBRARY_ERRORS as error:
        raise ArtifactError(f"not a valid {family.config}: {one_line(error)}") from error
    for key in ("image_size", "patch_size"):
        if not isinstance(getattr(config, key, 1), int) or getattr(config, key, 1) < 1:
            raise ArtifactError(f"{family.config}.{key} must be one positive integer: images and patches are square")
    for key in family.position_augmentation:
        setattr(config, key, None)
    return config


def _network(family: Family, config: Any) -> nn.Module:
    import transformers

    try:
        network: nn.Module = getattr(transformers, family.model)(config, **family.options)
    except _LIBRARY_ERRORS as error:
        raise ArtifactError(f"the described {family.model} cannot be built: {one_line(error)}") from error
    return network


def _is_folder(name: str) -> bool:
    """Whether `name` is a local folder; raises ConfigError for a path that does not exist."""
    if Path(name).is_dir():
        return True
    # A name on the hub has at most one slash.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(
            f"backbone folder not found: {name!r}", "give a folder with config.json and model.safetensors"
        )
    return False


def _unreachable(name: str, local: bool, error: Exception) -> ConfigError:
    reason = one_line(error)
    if local:
        return ConfigError(
            f"the folder {name!r} contains no complete backbone: {reason}",
            "it needs config.json and model.safetensors, as written by save_pretrained",
        )
    return ConfigError(
        f"cannot load {name!r}: it is not a local folder, and the Hugging Face hub failed: {reason}",
        "check the name, the network and the access rights, or give the folder of a local copy",
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
    """Mean and std from the preprocessor configuration next to the weights, else those of the family."""
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
        # transformers draws missing weights at random. They are rejected below; the seed protects the global generator.
        with _quiet(progress_bars=not local), seeded(0):
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
    source = repr(name)
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(IGNORED_PREFIXES)]
    check_keys(info["missing_keys"], unexpected, source=source)
    if mismatched := sorted(info["mismatched_keys"]):
        shapes = ", ".join(
            f"{key} {tuple(actual)}, expected {tuple(expected)}" for key, actual, expected in mismatched[:5]
        )
        raise ArtifactError(
            f"{source} does not fit: {shapes}", "check that config.json and the weights belong together"
        )
    return network  # type: ignore[no-any-return]


@contextmanager
def _quiet(*, progress_bars: bool = False) -> Iterator[None]:
    """Silence the log of transformers, and its progress bars unless `progress_bars`; restores both afterwards."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    verbosity, bars_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_enabled:
            logging.enable_progress_bar()

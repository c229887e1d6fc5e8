"""Load a backbone with weights from a configuration, or build one without weights from a description."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.settings import Section, Seed
from streetvision.models.backbone_spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PARAMETERS,
    SizeRule,
    native_size,
    read_description,
)

if TYPE_CHECKING:
    from streetvision.models.network import Backbone

RANDOM_IMAGE_SIZE = 224


class BackboneConfig(Section):
    """Which backbone, and where its weights come from. A setting that has no effect for the source is refused."""

    source: str
    """transformers: a Hugging Face model; timm; random: a DINOv3 ViT with random weights; embedded: in this package."""
    name: str | None = None
    """transformers: name on the hub or local folder; timm: name of the model; embedded: name of the asset."""
    weights: Path | None = None
    """timm: a file of weights, safetensors or a torch file with tensors only."""
    pretrained: bool = False
    """timm: download the weights from the hub. Without this and without `weights` they are random."""
    width: int = Field(default=128, gt=0)
    """random: width of a token."""
    depth: int = Field(default=6, gt=0)
    """random: number of transformer blocks."""
    heads: int = Field(default=4, gt=0)
    """random: number of attention heads."""
    patch_size: int = Field(default=16, gt=0)
    """random: pixels per side of a patch."""
    registers: int = Field(default=4, ge=0)
    """random: number of register tokens."""
    seed: Seed = 0
    """random, and timm with random weights: seed of the weights. random follows `pipeline.seed` by default."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.source not in BACKBONES:
            raise unknown_name("backbone source", self.source, BACKBONES)
        reads = BACKBONES[self.source].reads
        if self.pretrained or self.weights:
            reads = reads - {"seed"}
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if ignored := sorted(set(changed) - reads - {"source"}):
            loaded = " with loaded weights" if ignored == ["seed"] and self.source == "timm" else ""
            keys = "`, `".join(f"model.backbone.{name}" for name in ignored)
            used = ", ".join(sorted(reads))
            raise ConfigError(
                f"`{keys}` has no effect when model.backbone.source={self.source}{loaded}",
                f"settings of this source: {used}",
            )
        if "name" in reads and not self.name:
            raise ConfigError(
                f"model.backbone.name is missing for model.backbone.source={self.source}", "set model.backbone.name=..."
            )
        if self.pretrained and self.weights:
            raise ConfigError(
                "model.backbone.pretrained=true cannot be combined with model.backbone.weights",
                "leave out one of the two",
            )
        return self


@dataclass(frozen=True)
class Source:
    """A way to get a backbone."""

    build: "Callable[[BackboneConfig, SizeRule], Backbone]"
    reads: frozenset[str]
    """The fields of BackboneConfig that `build` uses."""


def load_backbone(config: BackboneConfig, size_rule: SizeRule = native_size) -> "Backbone":
    """Load a backbone with its weights, on the CPU, in float32 and in eval mode.

    Only a hub name (transformers) or `pretrained` (timm) needs the network.

    Args:
        config: The backbone.
        size_rule: Chooses the size of the input; by default the size that the backbone was trained with.

    Raises:
        ConfigError: A name does not exist, a size is not possible, or a download fails.
        ArtifactError: The weights do not fit.
    """
    return BACKBONES[config.source].build(config, size_rule).eval()


def build_backbone(architecture: Mapping[str, object], *, max_parameters: int = MAX_PARAMETERS) -> "Backbone":
    """Build the backbone that `BackboneSpec.architecture` describes, in eval mode, offline and without its weights.

    The description may come from an untrusted file. Only known model types and timm names are built, numbers are
    bounded, and parameters are counted before memory is allocated.

    Args:
        architecture: The description.
        max_parameters: The largest number of parameters that is allowed.

    Raises:
        ArtifactError, ConfigError: The description is not valid or too large.
    """
    # Local imports, because configurations are loaded without torch.
    from streetvision.models.timm_backbone import TimmArchitecture, build_timm
    from streetvision.models.transformers_backbone import TransformersArchitecture, build_transformers

    source, origin = architecture.get("source"), "the backbone description"
    if source == "transformers":
        transformers_model = read_description(TransformersArchitecture, architecture, source=origin)
        return build_transformers(transformers_model, max_parameters=max_parameters).eval()
    if source == "timm":
        timm_model = read_description(TimmArchitecture, architecture, source=origin)
        return build_timm(timm_model, max_parameters=max_parameters).eval()
    raise unknown_name("backbone architecture", str(source), ("timm", "transformers"))


def local_files(config: BackboneConfig) -> list[Path]:
    """Return the local files that `load_backbone` reads; none for a hub name or random weights."""
    if config.weights is not None:
        return [config.weights]
    folder = _asset(str(config.name)) if config.source == "embedded" else Path(str(config.name))
    if config.source not in {"embedded", "transformers"} or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".bin"})


def _from_transformers(config: BackboneConfig, size_rule: SizeRule) -> "Backbone":
    from streetvision.models.transformers_backbone import load_transformers

    return load_transformers(str(config.name), size_rule)


def _from_timm(config: BackboneConfig, size_rule: SizeRule) -> "Backbone":
    from streetvision.models.timm_backbone import load_timm

    return load_timm(
        str(config.name),
        weights=config.weights,
        pretrained=config.pretrained,
        seed=config.seed,
        size_rule=size_rule,
    )


def _from_random(config: BackboneConfig, size_rule: SizeRule) -> "Backbone":
    from streetvision.models.transformers_backbone import TransformersArchitecture, build_transformers

    # RoPE rotates pairs of channels for each of the two image axes.
    if config.width % (4 * config.heads):
        raise ConfigError(
            f"width={config.width} does not give each of {config.heads} heads a multiple of 4 channels",
            f"choose a width that {4 * config.heads} divides",
        )
    image_size = size_rule(config.patch_size, (RANDOM_IMAGE_SIZE, RANDOM_IMAGE_SIZE))
    fields: dict[str, object] = {
        "model_type": "dinov3_vit",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_register_tokens": config.registers,
        "patch_size": config.patch_size,
        "image_size": image_size[0],  # of a square; the description has both sides
    }
    description = TransformersArchitecture(config=fields, image_size=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return build_transformers(description, max_parameters=MAX_PARAMETERS, seed=config.seed)


def _from_embedded(config: BackboneConfig, size_rule: SizeRule) -> "Backbone":
    from streetvision.models.transformers_backbone import load_transformers

    return load_transformers(str(_asset(str(config.name))), size_rule)


def _asset(name: str) -> Path:
    """The folder of a backbone that is part of the package; raises ConfigError that lists them."""
    root = Path(str(resources.files("streetvision"))) / "assets"
    folders = {path.parent.name: path.parent for path in root.glob("*/config.json")}
    if not folders:
        raise ConfigError(f"no embedded backbone {name!r}: this package contains none", "use source=random")
    if name not in folders:
        raise unknown_name("embedded backbone", name, folders)
    return folders[name]


BACKBONES: Mapping[str, Source] = {
    "transformers": Source(_from_transformers, frozenset({"name"})),
    "timm": Source(_from_timm, frozenset({"name", "weights", "pretrained", "seed"})),
    "random": Source(_from_random, frozenset({"width", "depth", "heads", "patch_size", "registers", "seed"})),
    "embedded": Source(_from_embedded, frozenset({"name"})),
}
"""Name of a source -> how to build a backbone from it."""

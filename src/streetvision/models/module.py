"""The classifier: a uint8 image is normalized, goes through the backbone, is pooled and becomes two logits.

Shapes: B images of h x w pixels, T tokens, D their width, P pooled width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from streetvision.io.resize import ImageSize, as_size
from streetvision.io.resize_tensor import fit_tensor
from streetvision.models.backbone import build_backbone, load_backbone
from streetvision.models.backbone_spec import SizeRule, check_image_size, native_size, token_count
from streetvision.models.config import (
    AUTO,
    ClassifierDescription,
    CompilerConfig,
    HardwareConfig,
    HeadConfig,
    ImageSizeSetting,
    MlpHeadConfig,
    ModelConfig,
    PreprocessingVersion,
)
from streetvision.models.device import uses_compiler
from streetvision.models.losses import FocalLoss
from streetvision.models.network import Backbone
from streetvision.models.pooling import Pooling
from streetvision.models.preprocessing import input_decode_size

__all__ = [
    "N_CLASSES",
    "Classifier",
    "ClassifierDescription",
    "FocalLoss",
    "ImageClassifier",
    "build_classifier",
    "create_model_with_compile",
    "load_classifier",
    "make_head",
]

N_CLASSES = 2

CPU_CHUNK = 8
"""Images per forward pass on a CPU without gradients: the activations of more do not fit its caches."""


class ImageClassifier(nn.Module, ABC):
    """Interface that a fusion of views needs of a classifier: image -> features -> logits."""

    description: ClassifierDescription
    head: nn.Sequential
    """Features (..., P) -> logits (..., 2)."""
    width: int
    """P."""

    views_per_image = 1
    """Number of views that one image is split into."""

    def prepare(self, image: Tensor) -> Tensor:
        """Fit a decoded image, uint8 (3, H, W), into the model's input, uint8 (3, h, w); see `fit_tensor`."""
        return fit_tensor(image, self.description.image_size)

    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image before `prepare`."""
        return input_decode_size(image, self.description)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, h, w), to features (B, P)."""

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, h, w), to logits (B, 2)."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class Classifier(ImageClassifier):
    """The classifier in PyTorch. Normalization is a part of it, so callers pass raw pixels."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: str,
        head: HeadConfig,
        layers: int = 1,
        preprocessing: PreprocessingVersion = 2,
    ) -> None:
        super().__init__()
        spec = backbone.spec
        self.pooling, self.layers = Pooling(pooling, layers, spec), layers
        self.backbone = backbone
        self.width = self.pooling.width
        self.head = make_head(head, self.width)
        # Scaled to pixels in [0, 255]. Not persistent: the description holds them.
        self.register_buffer("mean", 255.0 * torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.description = ClassifierDescription.model_validate(
            {
                "backbone": dict(spec.architecture),
                "image_size": spec.image_size,
                "preprocessing": preprocessing,
                "pooling": pooling,
                "layers": layers,
                "head": head.model_dump(),
            }
        )

    def embed(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, h, w), to features (B, P)."""
        if images.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.cat([self._embed(part) for part in torch.split(images, CPU_CHUNK)])
        return self._embed(images)

    def _embed(self, images: Tensor) -> Tensor:
        return self.pooling(self.backbone((images - self.mean) / self.std, self.layers))

    def patches_at(self, image_size: ImageSize) -> "PatchTokens":
        """Return a module that maps images of another size to their patch tokens, with the weights of this backbone.

        Raises:
            ConfigError: The backbone does not take images of this size, or twice its patch size does not divide it.
        """
        return PatchTokens(self.backbone.at_size(image_size), self.mean, self.std)


class PatchTokens(nn.Module):
    """Maps images to the tokens of their patches in the last block, 2 x 2 of them averaged to one.

    Averaging makes the evidence's fit faster.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        spec = backbone.spec
        check_image_size(spec.image_size, 2 * spec.patch_size)
        self.backbone, self.width = backbone, spec.embed_dim
        self.grid = (spec.image_size[0] // spec.patch_size, spec.image_size[1] // spec.patch_size)
        self.count = token_count(spec.image_size, 2 * spec.patch_size)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, H, W), to averaged tokens (B, T, D)."""
        if images.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.cat([self._tokens(part) for part in torch.split(images, 1)])
        return self._tokens(images)

    def _tokens(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.backbone((images - self.mean) / self.std)[0]
        patches = tokens[:, self.backbone.spec.prefix_tokens :].transpose(1, 2)
        grid = patches.reshape(-1, self.width, *self.grid)
        return avg_pool2d(grid, 2).flatten(2).transpose(1, 2)


def make_head(config: HeadConfig, width: int) -> nn.Sequential:
    """Build a head that maps features (B, width) to logits (B, 2). Its first layer standardizes each row."""
    layers: list[nn.Module] = [nn.LayerNorm(width), nn.Dropout(config.dropout)]
    if isinstance(config, MlpHeadConfig):
        layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*layers, nn.Linear(width, N_CLASSES))


def load_classifier(config: ModelConfig, size_rule: SizeRule | None = None) -> Classifier:
    """Build a classifier with the backbone's weights and a new head, drawn from torch's global generator.

    Args:
        config: The classifier. Where it leaves pooling or layers to phase 1 (auto), the CLS token of the last block is
            read, or the mean of its patches if there is no CLS token.
        size_rule: Chooses the size of the input; None: the size that `config` gives, or the backbone's own if that is
            auto.
    """
    backbone = load_backbone(config.backbone, size_rule or fixed_size(config.image_size))
    pooling = config.pooling
    if pooling == AUTO:
        pooling = "cls" if backbone.spec.class_token else "mean"
    layers = config.layers if isinstance(config.layers, int) else 1
    return Classifier(backbone, pooling=pooling, head=config.head, layers=layers, preprocessing=config.preprocessing)


def fixed_size(image_size: ImageSizeSetting) -> SizeRule:
    """Return the rule for a size that is set; for auto and native, the size that the backbone was trained with."""
    if isinstance(image_size, str):
        return native_size
    size = as_size(image_size)
    return lambda _patch_size, _native: size


def build_classifier(description: ClassifierDescription) -> Classifier:
    """Build the classifier that `description` defines, in eval mode and without its weights; works offline."""
    backbone = build_backbone(description.backbone)
    return Classifier(
        backbone,
        pooling=description.pooling,
        head=description.head,
        layers=description.layers,
        preprocessing=description.preprocessing,
    ).eval()


@overload
def create_model_with_compile(config: Mapping[str, Any]) -> nn.Module: ...


@overload
def create_model_with_compile(config: HardwareConfig, model: nn.Module) -> nn.Module: ...


def create_model_with_compile(config: HardwareConfig | Mapping[str, Any], model: nn.Module | None = None) -> nn.Module:
    """Return a model wrapped by torch.compile, or the model itself if the configuration does not enable it.

    The wrapper shares its parameters with the model. Take state dicts from the model, whose keys have no prefix. The
    stance of the compiler holds for the whole process.

    Args:
        config: The section `hardware`; or a mapping with the sections `model` (fields of ModelConfig) and `hardware`
            (`compile`, `compiler`), from which the classifier is built as well.
        model: The model to compile, if `config` is the section `hardware`.
    """
    if not isinstance(config, HardwareConfig):
        model = load_classifier(ModelConfig.model_validate(config["model"]))
        hardware = config["hardware"]
        compiler = CompilerConfig(**hardware.get("compiler", {}))
        config = HardwareConfig(compile=hardware["compile"], compiler=compiler)
    assert model is not None
    if not uses_compiler(config):
        return model
    compiler = config.compiler
    torch.compiler.set_stance(compiler.stance)
    compiled: nn.Module = torch.compile(  # type: ignore[assignment]
        model, mode=compiler.mode, fullgraph=compiler.fullgraph, dynamic=compiler.dynamic
    )
    return compiled

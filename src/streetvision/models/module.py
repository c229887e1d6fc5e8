"""The classifier: uint8 image, normalised, through the backbone, pooled, into two logits.

Shapes: B images, S pixels a side, T tokens, D their width, P pooled width.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from streetvision.contracts.policies import Artifact
from streetvision.models.backbone import build_backbone, load_backbone
from streetvision.models.config import HeadConfig, ModelConfig
from streetvision.models.network import Backbone
from streetvision.models.pooling import get_pooling, pooled_dim

N_CLASSES = 2


class ClassifierDescription(Artifact):
    """config.json of phase 1 and of a bundle: enough to build the classifier and its preprocessing, weights apart."""

    schema_version: Literal[1] = 1
    backbone: dict[str, JsonValue]
    """What `build_backbone` takes."""
    image_size: int = Field(ge=1, le=4096)
    """Pixels a side of the square that every image is squashed to."""
    pooling: str
    head: HeadConfig


class ImageClassifier(nn.Module, ABC):
    """Images in, features, a head over them, logits out: what a fusion and a bundle ask of a classifier."""

    description: ClassifierDescription
    head: nn.Sequential
    width: int
    """P."""

    views_per_image = 1
    """Views that one image is cut into."""

    def prepare(self, image: Tensor) -> Tensor:
        """A decoded image uint8 (3, H, W) -> what the model takes: uint8 (3, S, S), its aspect ratio given up."""
        size = self.description.image_size
        resized: Tensor = resize(image, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
        return resized

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> features (B, P)."""

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> logits (B, 2)."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class Classifier(ImageClassifier):
    """The classifier in PyTorch; normalisation rides inside, so nobody can forget it."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, *, pooling: str, head: HeadConfig) -> None:
        super().__init__()
        self.pooling = get_pooling(pooling, backbone.spec)
        spec = backbone.spec
        self.backbone = backbone
        self.width = pooled_dim(pooling, spec)
        self.head = make_head(head, self.width)
        self.register_buffer("mean", 255.0 * torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.description = ClassifierDescription.model_validate(
            {
                "backbone": dict(spec.architecture),
                "image_size": spec.image_size,
                "pooling": pooling,
                "head": head.model_dump(),
            }
        )

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> features (B, P)."""
        tokens: Tensor = self.backbone((images - self.mean) / self.std)
        return self.pooling.pool(tokens, self.backbone.spec.prefix_tokens)


def make_head(config: HeadConfig, width: int) -> nn.Sequential:
    """A map from features (B, width) to logits (B, 2); features are standardised first, row by row."""
    layers: list[nn.Module] = [nn.LayerNorm(width), nn.Dropout(config.dropout)]
    if config.kind == "mlp":
        layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*layers, nn.Linear(width, N_CLASSES))


def load_classifier(config: ModelConfig) -> Classifier:
    """A classifier with its backbone's weights and a new head, drawn from torch's global generator."""
    return Classifier(load_backbone(config.backbone), pooling=config.pooling, head=config.head)


def build_classifier(description: ClassifierDescription) -> Classifier:
    """The classifier that `description` names, in eval mode, its weights yet to be filled; needs no network."""
    backbone = build_backbone(description.backbone)
    return Classifier(backbone, pooling=description.pooling, head=description.head).eval()

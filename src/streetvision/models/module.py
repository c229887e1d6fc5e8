"""The classifier: uint8 image, normalised, through the backbone, pooled, into two logits.

Shapes: B images, S pixels a side, T tokens, D their width, P pooled width.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Sealed
from streetvision.models.backbone import Backbone, BackboneConfig, build_backbone, load_backbone
from streetvision.models.pooling import get_pooling, pooled_dim

N_CLASSES = 2


class HeadConfig(BaseModel):
    """What turns a pooled feature vector into two logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear", "mlp"] = "linear"
    """linear: one layer; mlp: a hidden layer with GELU before it."""
    hidden: int = Field(default=256, ge=1, le=65_536)
    """Width of the hidden layer of mlp."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a feature is dropped in training."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.kind == "linear" and self.hidden != type(self).model_fields["hidden"].default:
            raise ConfigError("a linear head does not read hidden", "leave it out, or take model.head.kind=mlp")
        return self


class ModelConfig(BaseModel):
    """The classifier that phase 1 fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig
    pooling: str = "cls"
    """Name in POOLINGS: cls, mean (of patch tokens), cls_mean."""
    head: HeadConfig = HeadConfig()
    init_from_explora: bool | None = None
    """Start from the backbone that phase4a_explora adapted; null: when that phase is among pipeline.phases."""
    explora_checkpoint_path: Path | None = None
    """Start from this explora_checkpoint.pth, which another run made."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.explora_checkpoint_path is not None and self.init_from_explora is False:
            raise ConfigError(
                "explora_checkpoint_path is not read under init_from_explora=false", "leave out one of the two"
            )
        return self


class ClassifierDescription(Sealed):
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

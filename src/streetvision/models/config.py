"""Settings of the models' floor; apart from the code that reads them, because that code loads torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.policies import Sealed
from streetvision.models.backbone import BackboneConfig

FusionMode = Literal["simple_mean", "weighted_uncertainty", "content_aware", "top_k", "max", "noisy_or"]
FusedMode = Literal["multiview_mean", "cvfm_inference", "cvfm_trained"]


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


class AdapterConfig(BaseModel):
    """The adapters of training.mode=peft."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "lora"
    """A key of ADAPTERS: lora, dora, rslora, pissa."""
    rank: int = Field(default=16, ge=1)
    """Inner width of the two matrices of a layer."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the change: alpha / rank, for rslora alpha / sqrt(rank)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that an input of an adapter is dropped in training."""
    targets: tuple[str, ...] | Literal["all"] = "all"
    """Linear layers by the end of the backbone's own names, for example [qkv, proj]; all: every one that runs."""
    last_blocks: int | None = Field(default=None, ge=1)
    """Only the last so many blocks are adapted; null: all of them."""

    @model_validator(mode="after")
    def _method_exists(self) -> Self:
        if self.method not in ADAPTERS:
            raise unknown_name("adapter", self.method, ADAPTERS)
        return self


ADAPTERS: Mapping[str, Mapping[str, object]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}
"""Method -> what makes a LoraConfig of the PEFT library that method.

LoRA: Hu et al., arXiv 2106.09685. DoRA: Liu et al., 2402.09353. rsLoRA: Kalajdzievski, 2312.03732.
PiSSA: Meng et al., 2404.02948.
"""


class ViewsConfig(BaseModel):
    """How an image is cut into views: one global view, then rows x columns tiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(default=3, ge=1, le=16)
    """Tiles from top to bottom."""
    columns: int = Field(default=5, ge=1, le=16)
    """Tiles from left to right."""
    overlap: float = Field(default=0.2, ge=0, le=0.5)
    """Share of a tile's side that it has in common with the next one."""

    @property
    def count(self) -> int:
        """V."""
        return 1 + self.rows * self.columns


class FusionConfig(BaseModel):
    """How views are fused without training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: FusionMode = "simple_mean"
    """Name in FUSIONS."""
    temperature: float = Field(default=1.0, gt=0)
    """Of weighted_uncertainty: lower listens more to the sure views; nats."""
    k: int = Field(default=3, ge=1)
    """Of top_k: views that are listened to."""


class TrainedFusionConfig(BaseModel):
    """The size of the trained fusion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(default=64, ge=1, le=4096)
    """L."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Chance that a latent feature is dropped in training."""
    attention_heads: int = Field(default=0, ge=0, le=64)
    """Heads with which views attend to each other before they are averaged; 0: they do not. Divides `latent`."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.attention_heads and self.latent % self.attention_heads:
            raise ConfigError(
                f"latent={self.latent} is no multiple of attention_heads={self.attention_heads}",
                "give a latent width that the heads divide",
            )
        return self


class FusionDescription(Sealed):
    """cvfm_config.json of phase 4c and of a bundle: how images are cut and views are fused, weights apart."""

    schema_version: Literal[1] = 1
    mode: FusedMode
    """multiview_mean: the mean of the views' logits; cvfm_inference: a mode of FUSIONS; cvfm_trained: TrainableCVFM."""
    views: ViewsConfig
    inference: FusionConfig | None = None
    """Of cvfm_inference."""
    trained: TrainedFusionConfig | None = None
    """Of cvfm_trained."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        given = (self.inference is not None, self.trained is not None)
        if given != (self.mode == "cvfm_inference", self.mode == "cvfm_trained"):
            raise ValueError(f"mode {self.mode} does not go with the settings of fusion that are given")
        return self

"""Settings of the models' floor; apart from the code that reads them, because that code loads torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.policies import Artifact
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


LossName = Literal["cross_entropy", "weighted_cross_entropy", "focal"]
Stance = Literal[
    "default",
    "eager_then_compile",
    "aot_eager_then_compile",
    "force_eager",
    "eager_on_recompile",
    "fail_on_recompile",
]
"""What torch.compiler.set_stance takes; any other name raises only at the first compiled call."""
LOSS_READS: Mapping[LossName, frozenset[str]] = {
    "cross_entropy": frozenset({"label_smoothing"}),
    "weighted_cross_entropy": frozenset({"label_smoothing", "class_weights"}),
    "focal": frozenset({"gamma", "alpha"}),
}
"""Loss -> the settings that it reads."""


class LossConfig(BaseModel):
    """What is minimised. A field that the loss does not read is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LossName = "cross_entropy"
    """A key of LOSSES."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """cross_entropy, weighted_cross_entropy: share of the target spread evenly over both classes."""
    class_weights: tuple[float, float] | Literal["balanced"] = "balanced"
    """weighted_cross_entropy: weights of class 0 and class 1; balanced takes them from TRAIN's counts."""
    gamma: float = Field(default=2.0, ge=0)
    """focal: how much less rows count that are already right; 0 is cross-entropy."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """focal: weight of class 1, and 1 - alpha that of class 0; null weighs both by 1."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if ignored := sorted(changed - LOSS_READS[self.name] - {"name"}):
            raise ConfigError(
                f"the loss {self.name} does not read {', '.join(ignored)}",
                f"it reads: {', '.join(sorted(LOSS_READS[self.name]))}",
            )
        if not isinstance(self.class_weights, str) and min(self.class_weights) <= 0:
            raise ConfigError(f"class weights are positive, and one of {self.class_weights} is not")
        return self


class CompileConfig(BaseModel):
    """torch.compile of the classifier while it trains; what is saved and shipped is never the compiled module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    """Compile; worth its minutes on a GPU, not on a CPU."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How much time goes into the search for fast code."""
    fullgraph: bool = False
    """Refuse breaks of the graph."""
    dynamic: bool | None = None
    """One graph for all shapes; null: for those that were seen to change."""
    stance: Stance = "default"
    """What a call does that has no compiled code yet."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        changed = any(getattr(self, name) != field.default for name, field in type(self).model_fields.items())
        if not self.enabled and changed:
            raise ConfigError(
                "training.compile is off, and one of its other settings was given",
                "set training.compile.enabled=true or leave the others out",
            )
        return self


class HardwareConfig(BaseModel):
    """On what, and over how many processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: int = Field(default=1, ge=1)
    """Processes on one node, each with a device of its own; above 1 the command is started by torchrun."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto is ddp as soon as there is more than one process; fsdp cuts the weights among them, for less memory."""
    channels_last: bool = False
    """Images as NHWC in memory, which convolutions on a GPU are quickest on."""
    tf32: bool = True
    """Let fp32 matrix products on a GPU use TF32; other devices have none."""


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

    latent_dim: int = Field(default=64, ge=1, le=4096)
    """L."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Chance that a latent feature is dropped in training."""
    attention_heads: int = Field(default=0, ge=0, le=64)
    """Heads with which views attend to each other before they are averaged; 0: they do not. Divides `latent_dim`."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.attention_heads and self.latent_dim % self.attention_heads:
            raise ConfigError(
                f"latent_dim={self.latent_dim} is no multiple of attention_heads={self.attention_heads}",
                "give a latent width that the heads divide",
            )
        return self


class FusionDescription(Artifact):
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

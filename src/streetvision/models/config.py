"""Settings of the models. This module does not import torch, so that settings load quickly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Artifact
from streetvision.contracts.settings import RESULT_NEUTRAL, Section, no_effect
from streetvision.models.backbone import BackboneConfig

FusionMode = Literal["simple_mean", "weighted_uncertainty", "content_aware", "top_k", "max", "noisy_or"]
FusedMode = Literal["multiview_mean", "cvfm_inference", "cvfm_trained", "mil", "dense"]


class HeadConfig(Section):
    """The head: it maps a pooled feature vector to two logits."""

    kind: str
    """linear: one layer; mlp: a hidden layer with GELU before it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a feature is dropped in training."""


class LinearHeadConfig(HeadConfig):
    """One linear layer."""

    kind: Literal["linear"] = "linear"


class MlpHeadConfig(HeadConfig):
    """A hidden layer with GELU, and a linear layer."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=256, ge=1, le=65_536)
    """Width of the hidden layer."""


AnyHeadConfig = Annotated[LinearHeadConfig | MlpHeadConfig, Field(discriminator="kind")]


class CvfmChoice(Section):
    """The fusion of `phase4c_cvfm` by default."""

    mode: Literal["trained", "inference"] | None = None
    """Fusion of phase4c_cvfm if `phase4c.mode` is not set: cvfm_trained or cvfm_inference. null: mil, or dense or
    cvfm_trained if one of its settings is given."""


class MultiViewConfig(Section):
    """Prediction from several views of an image."""

    cvfm: CvfmChoice = CvfmChoice()
    """The fusion of the views."""


AUTO = "auto"
Side = Annotated[int, Field(ge=1, le=4096)]
PreprocessingVersion = Literal[1, 2]
"""See `streetvision.models.preprocessing`."""
ImageSizeSetting = Literal["auto", "native"] | Side | tuple[Side, Side]


class ModelConfig(Section):
    """The classifier that phase 1 fits."""

    backbone: BackboneConfig
    """The feature extractor."""
    image_size: ImageSizeSetting = "auto"
    """Size of the input: S (square), [height, width], native (the size that the backbone was trained with) or auto: the
    median aspect ratio of TRAIN, at about `model.image_tokens` tokens."""
    image_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """image_size=auto: about the number of patches of an image; auto: 560, or 280 for a fine-tuning that
    training.budget_minutes is too short for with 560. Images that are smaller than that, and smaller than the images
    that the backbone was trained with, get fewer."""
    preprocessing: PreprocessingVersion = 2
    """2: JPEGs that are much larger than the input are reduced while they are decoded, which is faster; 1: they are
    decoded at full size."""
    pooling: str = "auto"
    """How the tokens of a block become one vector: cls, mean and max (of the patch tokens), joined by an underscore,
    for example cls_mean. auto: phase 1 chooses by cross-validation on TRAIN."""
    layers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of last blocks whose tokens are read. auto: phase 1 chooses by cross-validation on TRAIN."""
    head: AnyHeadConfig = LinearHeadConfig()
    """The classification head."""
    init_from_explora: bool | None = None
    """Start from the backbone that phase4a_explora adapted; null: if it is in pipeline.phases or this run has one."""
    explora_checkpoint_path: Path | None = None
    """Start from this explora_checkpoint.pth of another run."""
    multiview: Annotated[MultiViewConfig, RESULT_NEUTRAL] = MultiViewConfig()
    """Prediction from several views of an image."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.image_size != AUTO and self.image_tokens != AUTO:
            raise no_effect("model.image_tokens", f"model.image_size={self.image_size}", "set model.image_size=auto")
        return self

    @model_validator(mode="after")
    def _check_initialization(self) -> Self:
        if self.explora_checkpoint_path is not None and self.init_from_explora is False:
            raise no_effect(
                "model.explora_checkpoint_path", "model.init_from_explora=false", "set model.init_from_explora=null"
            )
        return self


class ClassifierDescription(Artifact):
    """config.json of phase 1 and of a bundle: everything but the weights that the classifier is built from."""

    schema_version: Literal[1] = 1
    backbone: dict[str, JsonValue]
    """Argument of `build_backbone`."""
    image_size: tuple[Side, Side]
    """Height and width to which every image is resized."""
    preprocessing: PreprocessingVersion = 1
    """How an image is decoded before that. Bundles without this field have version 1."""
    pooling: str
    """Names in POOLINGS, joined by an underscore."""
    layers: int = Field(default=1, ge=1, le=512)
    """Number of last blocks that are pooled."""
    head: AnyHeadConfig

    @property
    def reduces(self) -> bool:
        """Whether the decoder reduces large JPEGs."""
        return self.preprocessing >= 2


class AdapterConfig(Section):
    """Low-rank adapters of `training.mode=peft`, by the PEFT library.

    References:
        LoRA: Hu et al., arXiv 2106.09685. DoRA: Liu et al., 2402.09353. rsLoRA: Kalajdzievski, 2312.03732.
        PiSSA: Meng et al., 2404.02948.
    """

    rank: int = Field(default=16, ge=1)
    """Inner width of the two matrices of an adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of an adapter's change: alpha / rank; with use_rslora alpha / sqrt(rank)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that an input of an adapter is dropped in training."""
    use_dora: bool = False
    """Adapt magnitude and direction of the weights separately (DoRA)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (rank-stabilized LoRA)."""
    init_lora_weights: Literal[True, "gaussian", "pissa"] = True
    """Initial weights: true is PEFT's default (no change at first); pissa: the principal singular vectors."""
    targets: tuple[str, ...] | Literal["all"] = "all"
    """Linear layers by the last part of their names, for example [qkv, proj]; all: every one."""
    last_blocks: int | None = Field(default=None, ge=1)
    """Adapt the last blocks only; null: all blocks."""


LossName = Literal["cross_entropy", "weighted_cross_entropy", "focal"]
LOSS_ALIASES: Mapping[str, LossName] = {"ce": "cross_entropy", "weighted_ce": "weighted_cross_entropy"}
"""Short names of losses."""


class LossConfig(Section):
    """The training loss."""

    name: str
    """The kind of loss; ce and weighted_ce are short for cross_entropy and weighted_cross_entropy."""


class CrossEntropyConfig(LossConfig):
    """Cross-entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over both classes. Above 0 no solver fits the head: fine-tuning starts
    from a random one, and is compared with no probe."""


class WeightedCrossEntropyConfig(LossConfig):
    """Cross-entropy with class weights."""

    name: Literal["weighted_cross_entropy"] = "weighted_cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over both classes. Above 0 no solver fits the head: fine-tuning starts
    from a random one, and is compared with no probe."""
    class_weights: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | Literal["balanced"] = (
        "balanced"
    )
    """Weights of class 0 and class 1; balanced: computed from the class counts of TRAIN."""


class FocalLossConfig(LossConfig):
    """Focal loss."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0)
    """How much rows that are already classified well are down-weighted; 0 is cross-entropy."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of class 1; class 0 has 1 - alpha. null: both classes have weight 1."""


def _long_name(value: object) -> object:
    if isinstance(value, dict) and (name := value.get("name")) in LOSS_ALIASES:
        return {**value, "name": LOSS_ALIASES[cast(str, name)]}
    return value


AnyLossConfig = Annotated[
    Annotated[CrossEntropyConfig | WeightedCrossEntropyConfig | FocalLossConfig, Field(discriminator="name")],
    BeforeValidator(_long_name),
]

Stance = Literal[
    "default",
    "eager_then_compile",
    "aot_eager_then_compile",
    "force_eager",
    "eager_on_recompile",
    "fail_on_recompile",
]
"""Arguments of torch.compiler.set_stance; with any other name torch fails only at the first compiled call."""


class CompilerConfig(Section):
    """Options of torch.compile."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How much time is spent on the search for fast kernels."""
    fullgraph: bool = False
    """Fail at a graph break instead of compiling in parts."""
    dynamic: bool | None = None
    """Compile one graph for all shapes; null: only for shapes that were seen to change."""
    stance: Stance = "default"
    """What a call does for which there is no compiled code yet."""


class HardwareConfig(Section):
    """Devices, processes and memory of the trainings in phase 1 and phase 4a. Heads on features use one process."""

    devices: int = Field(default=1, ge=1)
    """Processes per node, one device each; above 1 start the command with torchrun."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto: ddp if there is more than one process; fsdp: shard the weights in phase 1, to save memory. Phase 4a, which
    needs whole weights, then uses ddp."""
    channels_last: bool = False
    """Store images as NHWC, which is fastest for convolutions on a GPU."""
    tf32: bool = True
    """Allow TF32 in fp32 matrix products on a GPU; other devices have no TF32."""
    compile: bool | Literal["auto"] = False
    """Compile the classifier in phase 1 with torch.compile. It takes minutes and pays on a GPU; auto: only there."""
    compiler: CompilerConfig = CompilerConfig()
    """Options of torch.compile."""

    @property
    def processes(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if not self.compile and self.compiler != CompilerConfig():
            raise no_effect("hardware.compiler", "hardware.compile=false", "set hardware.compile=true")
        if self.strategy == "fsdp" and self.processes == 1:
            raise no_effect("hardware.strategy=fsdp", "there is one process", "set hardware.devices=2 or more")
        if self.strategy == "fsdp" and self.compile:
            raise ConfigError(
                "hardware.strategy=fsdp cannot be combined with hardware.compile=true",
                "set hardware.strategy=ddp or hardware.compile=false",
            )
        return self


class ViewsConfig(Section):
    """How an image is split into views: one global view, then rows x columns tiles."""

    rows: int = Field(default=3, ge=1, le=16)
    """Tiles from top to bottom."""
    columns: int = Field(default=5, ge=1, le=16)
    """Tiles from left to right."""
    overlap: float = Field(default=0.2, ge=0, le=0.5)
    """Overlap of neighboring tiles, as a share of a tile's side."""

    @property
    def count(self) -> int:
        """V, the number of views."""
        return 1 + self.rows * self.columns


class FusionConfig(Section):
    """Fusion of views without parameters."""

    mode: FusionMode = "simple_mean"
    """How the logits of the views are combined."""
    temperature: float = Field(default=1.0, gt=0)
    """weighted_uncertainty: lower values give confident views more weight; in nats."""
    k: int = Field(default=3, ge=1)
    """top_k: number of views that count."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        fields = type(self).model_fields
        for name, mode in {"temperature": "weighted_uncertainty", "k": "top_k"}.items():
            if self.mode != mode and getattr(self, name) != fields[name].default:
                key = f"phase4c.inference.{name}"
                raise no_effect(key, f"phase4c.inference.mode={self.mode}", f"set phase4c.inference.mode={mode}")
        return self


class TrainedFusionConfig(Section):
    """Size of the trained fusion."""

    latent_dim: int = Field(default=64, ge=1, le=4096)
    """L, the width of the latent space."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a latent feature is dropped in training."""
    attention_heads: int = Field(default=0, ge=0, le=64)
    """Heads of the attention between views; 0: no attention. It must divide `latent_dim`."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.attention_heads and self.latent_dim % self.attention_heads:
            raise ConfigError(
                f"latent_dim={self.latent_dim} is not a multiple of attention_heads={self.attention_heads}",
                "choose attention_heads that divide latent_dim",
            )
        return self


class EvidencePoolingConfig(Section):
    """How the evidence of the tiles or patches of an image becomes one number."""

    name: str = "lse"
    """lse: a smooth maximum of the scores (log-sum-exp); top_k: the mean of the largest scores; gated_attention: a mean
    of the scores, weighted by attention."""


class LseConfig(EvidencePoolingConfig):
    """A smooth maximum: log-sum-exp with beta = log(number of tiles)."""

    name: Literal["lse"] = "lse"


class TopKConfig(EvidencePoolingConfig):
    """The mean of the largest scores."""

    name: Literal["top_k"] = "top_k"
    k: int = Field(default=3, ge=1, le=4096)
    """Number of scores that count."""


class GatedAttentionConfig(EvidencePoolingConfig):
    """A mean of the scores, weighted by gated attention.

    References:
        Ilse, Tomczak and Welling 2018, arXiv 1802.04712, section 2.4.
    """

    name: Literal["gated_attention"] = "gated_attention"
    hidden: int = Field(default=8, ge=1, le=1024)
    """Width of the attention's hidden layer."""
    weight_decay: float = Field(default=0.01, ge=0)
    """L2 penalty of the attention's weights."""


AnyEvidencePoolingConfig = Annotated[LseConfig | TopKConfig | GatedAttentionConfig, Field(discriminator="name")]


class FusionDescription(Artifact):
    """cvfm_config.json of phase 4c and of a bundle: how an image is split into views and how these are fused."""

    schema_version: Literal[1] = 1
    mode: FusedMode
    """multiview_mean: mean of the logits; cvfm_inference: a mode of FUSIONS; cvfm_trained: TrainableCVFM; mil, dense:
    a class in EVIDENCE."""
    views: ViewsConfig | None = None
    """All modes but dense: the grid of tiles."""
    inference: FusionConfig | None = None
    """cvfm_inference: its settings."""
    trained: TrainedFusionConfig | None = None
    """cvfm_trained: its size."""
    pooling: AnyEvidencePoolingConfig | None = None
    """mil, dense: how the evidence is pooled."""
    dense_size: tuple[Side, Side] | None = None
    """dense: height and width of the image in the dense pass."""

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        needed = {
            "views": self.mode != "dense",
            "inference": self.mode == "cvfm_inference",
            "trained": self.mode == "cvfm_trained",
            "pooling": self.mode in ("mil", "dense"),
            "dense_size": self.mode == "dense",
        }
        if any((getattr(self, name) is not None) != need for name, need in needed.items()):
            raise ValueError(f"mode {self.mode} does not match the settings of the fusion")
        return self

    @property
    def has_weights(self) -> bool:
        """Whether the fusion is fitted, and so has a file of weights."""
        return self.mode in ("cvfm_trained", "mil", "dense")

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return 0 if self.views is None else self.views.count - 1

"""Settings of phases 1, 4c and MaC-Cal. This module does not import Lightning, so that settings load quickly."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from streetvision.contracts.settings import GATE_WORDS, RESULT_NEUTRAL, GateSetting, Section, Seed
from streetvision.io.resize import ImageSize
from streetvision.models.config import (
    AdapterConfig,
    AnyEvidencePoolingConfig,
    AnyLossConfig,
    CrossEntropyConfig,
    FusionConfig,
    FusionDescription,
    HeadConfig,
    LossConfig,
    LseConfig,
    TrainedFusionConfig,
    ViewsConfig,
)

PrecisionName = Literal["auto", "bf16", "fp32"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class MixedPrecisionConfig(Section):
    """Mixed precision of a training through the backbone."""

    enabled: bool | Literal["auto"] = "auto"
    """true: compute in `dtype` where that is safe; false: fp32; auto: true if the device computes in bf16 natively."""
    dtype: Literal["bf16"] = "bf16"
    """The lower precision. fp16 is not offered: it overflows with DINOv3."""

    @property
    def precision(self) -> PrecisionName:
        """The precision to train with."""
        if self.enabled == "auto":
            return "auto"
        return "bf16" if self.enabled else "fp32"


class LearningConfig(Section):
    """What every training with gradients has: batches, optimizer, tracking."""

    batch_size: Count
    """Images per batch, over all processes."""
    gradient_accumulation_steps: Count = 1
    """Batches per optimizer step: the effective batch has batch_size times as many images."""
    learning_rate: Rate
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = 0.01
    """Weight decay of weight matrices; norms and biases have none."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all optimizer steps in which the learning rate rises linearly; a cosine follows."""
    gradient_clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient; null: no clipping."""
    tracker: Annotated[Literal["none", "wandb", "mlflow"], RESULT_NEUTRAL] = "none"
    """Experiment tracker in addition to metrics.csv and TensorBoard: Weights & Biases or MLflow (extra: tracking)."""
    tracker_offline: Annotated[bool, RESULT_NEUTRAL] = True
    """wandb: write files to the run folder for a later `wandb sync`; mlflow: use a file store there."""
    seed: Seed = 0
    """Seed of initial weights, row order and augmentation."""
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    """bf16 or fp32."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        raise NotImplementedError

    @property
    def precision(self) -> PrecisionName:
        """Precision of the steps."""
        return self.mixed_precision.precision

    @property
    def effective_batch_size(self) -> int:
        """Images per optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.gradient_accumulation_steps

    @property
    def checkpoint_interval(self) -> int | None:
        """Optimizer steps between checkpoints; None: no checkpoint within an epoch."""
        return None


class BackboneLearningConfig(LearningConfig):
    """What a training through the backbone has in addition."""

    checkpoint_every_n_steps: Annotated[int, RESULT_NEUTRAL] = Field(default=200, ge=1)
    """Optimizer steps between the checkpoints from which an interrupted run resumes; each epoch also writes one."""

    @property
    def checkpoint_interval(self) -> int | None:
        """Optimizer steps between checkpoints."""
        return self.checkpoint_every_n_steps


class TrainingConfig(LearningConfig):
    """How phase 1 fits the classifier."""

    mode: str
    """auto: a head on frozen features, and fine-tuning where it is affordable and better; frozen: the head alone; peft:
    adapters; last_n: the last blocks; full: all weights."""
    epochs: Count | None
    """Passes over the training images."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights. Each epoch evaluates both, and the better one ships; under
    data.protocol=cross_fit, the average."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Epochs without a better VAL_SELECT MCC (NLL breaks ties) after which training stops; null: never. Not with
    data.protocol=cross_fit."""
    save_top_k: Count = 1
    """Number of checkpoints to keep, ranked on VAL_SELECT. The best one ships. Not with data.protocol=cross_fit."""
    loss: AnyLossConfig = CrossEntropyConfig()
    """The training loss."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        assert self.epochs is not None, "training.mode=auto sets them by the number of images"
        return self.epochs


class FrozenConfig(TrainingConfig):
    """The backbone is frozen: features are computed once, then a head is fitted to them.

    A linear head with a cross-entropy is fitted by a solver, which has no epochs, batches or learning rate. These
    settings are for an MLP head and for the focal loss.
    """

    mode: Literal["frozen"] = "frozen"
    epochs: Count = 40
    batch_size: Count = 256
    learning_rate: Rate = 3e-3
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig(enabled=False)
    """Precision of the head's steps; the features are computed in fp32."""


class FinetuningConfig(BackboneLearningConfig, TrainingConfig):
    """Training on augmented images, through the backbone."""

    micro_batch_size: int | None = Field(default=None, ge=1)
    """Images per forward pass, over all processes: a divisor of batch_size. It saves memory and gives the same step;
    null: batch_size."""
    gate: GateSetting = "on"
    """on: the fine-tuned model ships only if its NLL is below that of the probe (the head on frozen features) by at
    least 0.001, and below that of a constant probability; off: it ships; only_report: it ships, and both are
    compared."""

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.effective_batch_size // (self.micro_batch_size or self.batch_size)


class PeftConfig(FinetuningConfig):
    """Low-rank adapters are trained, and merged before saving."""

    mode: Literal["peft"] = "peft"
    epochs: Count = 3
    batch_size: Count = 16
    learning_rate: Rate = 1e-3
    adapter: AdapterConfig = AdapterConfig()
    """The adapters."""


class LayerDecayConfig(FinetuningConfig):
    """Weights of the backbone itself are trained."""

    batch_size: Count = 32
    weight_decay: NonNegative = 0.05
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each block to the block before it."""


class LastNConfig(LayerDecayConfig):
    """The last blocks are trained."""

    mode: Literal["last_n"] = "last_n"
    epochs: Count = 10
    learning_rate: Rate = 5e-4
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    last_blocks: Count = 2
    """Number of blocks to train."""


class FullConfig(LayerDecayConfig):
    """All weights are trained."""

    mode: Literal["full"] = "full"
    epochs: Count = 10
    learning_rate: Rate = 2e-4


class AutoConfig(LayerDecayConfig):
    """The head on frozen features, then fine-tuning from it if that is affordable. What has the lower NLL ships.

    All weights are fine-tuned; of a backbone with over 100 million parameters, the last four blocks.
    """

    mode: Literal["auto"] = "auto"
    epochs: Count | None = None
    """Passes over the training images; null: 3 to 16, fewer for more images."""
    batch_size: Count = 16
    learning_rate: Rate = 1e-4
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each block to the block before it."""
    budget_minutes: float = Field(default=30.0, ge=0)
    """Longest time for fine-tuning, by an estimate. If it is too short, there are fewer epochs, at least half of them;
    under cross_fit fewer folds; fewer patches of an image; then fewer epochs, at least one. If one epoch takes longer,
    the head on frozen features ships. 0: no fine-tuning."""


AnyTrainingConfig = Annotated[
    AutoConfig | FrozenConfig | PeftConfig | LastNConfig | FullConfig, Field(discriminator="mode")
]


class CvfmConfig(Section):
    """Phase 4c: how an image is split into views, and how these are fused."""

    mode: str
    """single_view: phase 1's classifier as it is. mil: evidence of tiles is added to it, learned from the labels of
    images; the default if phase4c_cvfm is in pipeline.phases. dense: the same with patches of one pass at a higher
    resolution. auto: dense or mil, the cheaper one that is not worse. multiview_mean: the mean over views.
    cvfm_inference: a fusion without parameters. cvfm_trained: a trained fusion in a latent space."""
    seed: Seed = 0
    """Seed of the fusion's initial weights and of the row order."""


class SingleViewConfig(CvfmConfig):
    """The whole image is the only view."""

    mode: Literal["single_view"] = "single_view"


class FusingConfig(CvfmConfig):
    """The single view is compared with a fusion."""

    gate: GateSetting = "on"
    """on: the fusion ships only if its NLL is lower by at least 0.001, with 80 % confidence; off: the fusion ships;
    only_report: it ships, and both are compared."""

    @property
    def candidates(self) -> "tuple[FusionSettings, ...]":
        """The fusions that are compared."""
        raise NotImplementedError


class FusionSettings(FusingConfig):
    """One fusion."""

    @property
    def candidates(self) -> "tuple[FusionSettings, ...]":
        """The fusion itself."""
        return (self,)

    def description(self, dense_size: Callable[[float], ImageSize] | None = None) -> FusionDescription:
        """Return the fusion as a bundle records it.

        Args:
            dense_size: Multiple of the single view's pixels -> height and width of a dense pass; None if there is none.
        """
        names = ("mode", "views", "inference", "trained", "pooling")
        fields = {name: getattr(self, name) for name in names if hasattr(self, name)}
        if isinstance(self, DenseConfig):
            assert dense_size is not None
            fields["dense_size"] = dense_size(self.dense_ratio)
        return FusionDescription.model_validate(fields)


class TilesConfig(CvfmConfig):
    """The image is split into tiles."""

    views: ViewsConfig = ViewsConfig()
    """How an image is split."""


class PoolingConfig(CvfmConfig):
    """Evidence, learned from the labels of images, is added to the single view."""

    pooling: AnyEvidencePoolingConfig = LseConfig()
    """How the evidence of tiles or patches becomes one number."""


class DensePassConfig(CvfmConfig):
    """The image is seen once more at a higher resolution."""

    dense_ratio: float = Field(default=4.0, gt=1, le=64)
    """Patches of the dense pass, as a multiple of those of the single view. It has the median aspect ratio of TRAIN."""


class MilConfig(FusionSettings, TilesConfig, PoolingConfig):
    """Evidence of tiles."""

    mode: Literal["mil"] = "mil"


class DenseConfig(FusionSettings, DensePassConfig, PoolingConfig):
    """Evidence of the patches of one pass at a higher resolution."""

    mode: Literal["dense"] = "dense"


class AutoFusionConfig(FusingConfig, DensePassConfig, TilesConfig, PoolingConfig):
    """Dense and mil are compared. The cheaper one ships if it is better than the single view and not worse."""

    mode: Literal["auto"] = "auto"
    gate: Annotated[Literal["on", "only_report"], GATE_WORDS] = "on"
    """on: a fusion ships only if its NLL is lower by at least 0.001, with 80 % confidence; only_report: the fusion
    ships, and both are compared."""

    @property
    def candidates(self) -> tuple[FusionSettings, ...]:
        """The fusions that are compared."""
        seed, gate, pooling = self.seed, self.gate, self.pooling
        return (
            DenseConfig(seed=seed, gate=gate, pooling=pooling, dense_ratio=self.dense_ratio),
            MilConfig(seed=seed, gate=gate, pooling=pooling, views=self.views),
        )


class MultiViewMeanConfig(FusionSettings, TilesConfig):
    """The mean of the views' logits."""

    mode: Literal["multiview_mean"] = "multiview_mean"


class CvfmInferenceConfig(FusionSettings, TilesConfig):
    """A fusion without parameters."""

    mode: Literal["cvfm_inference"] = "cvfm_inference"
    inference: FusionConfig = FusionConfig()
    """The fusion."""


class CvfmTrainedConfig(FusionSettings, TilesConfig):
    """A fusion that is trained on TRAIN."""

    mode: Literal["cvfm_trained"] = "cvfm_trained"
    trained: TrainedFusionConfig = TrainedFusionConfig()
    """Its size."""
    epochs: Count = 40
    """Passes over TRAIN's features."""
    batch_size: Count = 64
    """Images per optimizer step."""
    learning_rate: Rate = 3e-3
    """Learning rate of AdamW."""
    weight_decay: NonNegative = 0.01
    """Weight decay of weight matrices."""
    reconstruction_weight: NonNegative = 0.1
    """Weight of the reconstruction loss of each view's features, added to the cross-entropy."""


AnyCvfmConfig = Annotated[
    SingleViewConfig
    | MilConfig
    | DenseConfig
    | AutoFusionConfig
    | MultiViewMeanConfig
    | CvfmInferenceConfig
    | CvfmTrainedConfig,
    Field(discriminator="mode"),
]


def is_solvable(head: HeadConfig, loss: LossConfig) -> bool:
    """Return whether a logistic regression fits the head: it is linear, the loss an unsmoothed cross-entropy."""
    return head.kind == "linear" and loss.name != "focal" and getattr(loss, "label_smoothing", 0.0) == 0


class MacCalConfig(Section):
    """How phase5_maccal retrains the head on cached features."""

    epochs: Count = 40
    """Passes over TRAIN's features."""
    batch_size: Count = 256
    """Rows per optimizer step, and per mask."""
    learning_rate: Rate = 1e-3
    """Learning rate of AdamW."""
    weight_decay: NonNegative = 0.01
    """Weight decay of weight matrices."""
    retention: float = Field(default=0.9, gt=0, le=1)
    """Share of weights that a mask keeps in the first epoch."""
    adaptation: NonNegative = 0.5
    """Share of weights dropped after each epoch, per unit of mean confidence above accuracy."""
    min_retention: float = Field(default=0.1, gt=0, le=1)
    """Lower bound of the share that a mask keeps."""
    seed: Seed = 0
    """Seed of the initial weights, the masks and the row order."""

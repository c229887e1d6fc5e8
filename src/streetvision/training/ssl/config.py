"""Settings of phase 4a. This module does not import Lightning, so that settings load quickly."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import GateSetting
from streetvision.data.config import PairConfig
from streetvision.training.config import BackboneLearningConfig, Count, NonNegative, Rate

Method = Literal["simclr", "byol", "swav", "byol_swav", "group", "diet"]


class ExPLoRAConfig(BackboneLearningConfig):
    """How phase 4a adapts the backbone without labels."""

    method: str
    """simclr: contrast within the batch; byol: predict a momentum target; swav: agree on prototypes; byol_swav: both
    of these; group: find the prototype of an image's group, for groups that show one object; diet: find the image."""
    num_epochs: Count = 3
    """Passes over the training images."""
    batch_size: Count = 64
    learning_rate: Rate = 5e-5
    """Peak learning rate of AdamW for the backbone's last layers."""
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor of the learning rate from each block to the block before it."""
    head_learning_rate: Rate = 1e-3
    """Peak learning rate of the projection head and of the method's own parameters."""
    warmup_fraction: float = Field(default=0.3, ge=0, lt=1)
    """Share of all optimizer steps in which the learning rate rises linearly; a cosine follows. The projection head and
    the method's own parameters are trained alone before."""
    anchor_weight: NonNegative = 1.0
    """Weight of the cosine distance between the features of unchanged images of TRAIN and those of the original
    backbone, added to the loss; 0: none."""
    rank: Count = 32
    """Inner width of the adapters."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale of an adapter's change: alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that an input of an adapter is dropped in training."""
    use_dora: bool = False
    """Adapt magnitude and direction of the weights separately (DoRA)."""
    unfreeze_blocks: int = Field(default=1, ge=0)
    """Number of last blocks whose weights are trained directly; all other blocks get adapters."""
    projection_hidden: Count = 512
    """Width of the hidden layer of the projection head, which is discarded after training."""
    projection_dim: int = Field(default=128, ge=2)
    """Width of an embedding."""
    knn_probe_size: int = Field(default=256, ge=2)
    """Number of TRAIN images for the k-NN MCC after each epoch. It is reported only, and selects nothing."""
    views: PairConfig = PairConfig()
    """How the two views of an image are drawn."""
    gate: GateSetting = "on"
    """on: take the share of the adapted weights with the lowest NLL of a probe, cross-validated on TRAIN, if this NLL
    is lower than the original's by at least 0.001, with 80 % confidence; off: take the adapted weights; only_report:
    compare them as well."""

    @property
    def max_epochs(self) -> int:
        """Passes over the training images."""
        return self.num_epochs


class SimCLRConfig(ExPLoRAConfig):
    """Contrast within the batch."""

    method: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.1, gt=0)
    """Divisor of the similarities, usually 0.07 to 0.2; lower values weight near negatives more."""
    grad_cache_chunk: int | None = Field(default=None, ge=1)
    """Views in memory at a time, by gradient caching: the same step for one more forward pass. null: all."""


class _MomentumConfig(ExPLoRAConfig):
    momentum: float = Field(default=0.99, gt=0, lt=1)
    """Share of the target network that each step keeps."""


class _PrototypeConfig(ExPLoRAConfig):
    temperature: float = Field(default=0.1, gt=0)
    """Divisor of the similarities, usually 0.07 to 0.2; lower values weight near negatives more."""
    prototypes: int = Field(default=64, ge=2)
    """Number of prototypes; at most about as many as a batch has images."""
    epsilon: float = Field(default=0.01, gt=0)
    """Divisor of the similarities in the Sinkhorn step; if it is too high, all images get the same code."""


class BYOLConfig(_MomentumConfig):
    """Prediction of a momentum target."""

    method: Literal["byol"] = "byol"


class SwAVConfig(_PrototypeConfig):
    """Agreement on prototypes."""

    method: Literal["swav"] = "swav"


class BYOLSwAVConfig(_MomentumConfig, _PrototypeConfig):
    """The mean of the losses of BYOL and SwAV."""

    method: Literal["byol_swav"] = "byol_swav"


class GroupConfig(ExPLoRAConfig):
    """Prototypes of groups."""

    method: Literal["group"] = "group"
    temperature: float = Field(default=0.1, gt=0)
    """Divisor of the similarities, usually 0.07 to 0.2; lower values weight near prototypes more."""

    @model_validator(mode="after")
    def _check_positives(self) -> Self:
        if self.views.positives != "same_group":
            raise ConfigError(
                "phase4a.method=group is for groups whose images show one object, and "
                f"phase4a.views.positives={self.views.positives} takes both views from one image",
                "set phase4a.views.positives=same_group, or phase4a.method=simclr",
            )
        return self


class DIETConfig(ExPLoRAConfig):
    """Classification of which image a view shows."""

    method: Literal["diet"] = "diet"
    label_smoothing: float = Field(default=0.8, ge=0, lt=1)
    """Share of a target's probability that is spread evenly over all images."""

    @model_validator(mode="after")
    def _check_positives(self) -> Self:
        if self.views.positives != "same_image":
            raise ConfigError(
                "phase4a.method=diet finds the image that a view shows, and "
                f"phase4a.views.positives={self.views.positives} takes the views from two images",
                "set phase4a.views.positives=same_image, or phase4a.method=group",
            )
        return self


AnyExPLoRAConfig = Annotated[
    SimCLRConfig | BYOLConfig | SwAVConfig | BYOLSwAVConfig | GroupConfig | DIETConfig, Field(discriminator="method")
]

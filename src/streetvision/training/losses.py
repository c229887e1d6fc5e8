"""Losses of the classifier: one table from name to class. Each is a mean over rows, so parts of a batch average to it.

Shapes: B rows; logits (B, 2) float; targets (B, 2) float, the share of each class (one-hot unless rows were mixed).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError, DataError, unknown_name


class LossConfig(BaseModel):
    """What is minimised. A field that the loss does not read is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "cross_entropy"
    """A key of LOSSES: cross_entropy, weighted_cross_entropy, focal."""
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
        if self.name not in LOSSES:
            raise unknown_name("loss", self.name, LOSSES)
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if ignored := sorted(changed - LOSSES[self.name].reads - {"name"}):
            raise ConfigError(
                f"the loss {self.name} does not read {', '.join(ignored)}",
                f"it reads: {', '.join(sorted(LOSSES[self.name].reads))}",
            )
        if not isinstance(self.class_weights, str) and min(self.class_weights) <= 0:
            raise ConfigError(f"class weights are positive, and one of {self.class_weights} is not")
        return self


class CrossEntropy(nn.Module):
    """Mean cross-entropy, with label smoothing (Szegedy et al., arXiv 1512.00567, section 7)."""

    reads = frozenset({"label_smoothing"})

    def __init__(self, config: LossConfig, labels: Sequence[int]) -> None:  # noqa: ARG002
        super().__init__()
        self.label_smoothing = config.label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss as a scalar."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy of rows weighed by their class: the mean of w[class] * CE, not divided by the batch's weights.

    Balanced weights are N / (2 N_c), whose mean over TRAIN is 1.
    """

    reads = frozenset({"label_smoothing", "class_weights"})
    weights: Tensor

    def __init__(self, config: LossConfig, labels: Sequence[int]) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing
        given = config.class_weights
        weights = balanced_weights(labels) if isinstance(given, str) else given
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss as a scalar."""
        rows = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        return (targets @ self.weights.to(targets.dtype) * rows).mean()


class FocalLoss(nn.Module):
    """Focal loss (Lin et al., arXiv 1708.02002, equation 5) over the softmax of two logits; alpha weighs class 1."""

    reads = frozenset({"gamma", "alpha"})
    weights: Tensor

    def __init__(self, config: LossConfig, labels: Sequence[int]) -> None:  # noqa: ARG002
        super().__init__()
        self.gamma = config.gamma
        weights = (1.0, 1.0) if config.alpha is None else (1.0 - config.alpha, config.alpha)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss as a scalar."""
        log_p = F.log_softmax(logits, dim=1)
        missed = -torch.expm1(log_p.clamp(max=-1e-7))  # 1 - p; the clamp keeps the slope of its power finite at p = 1
        return -(targets * self.weights.to(log_p.dtype) * missed**self.gamma * log_p).sum(dim=1).mean()


LOSSES: Mapping[str, type[CrossEntropy] | type[WeightedCrossEntropy] | type[FocalLoss]] = {
    "cross_entropy": CrossEntropy,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": FocalLoss,
}
"""Name -> loss, made from its settings and TRAIN's labels."""


def make_loss(config: LossConfig, labels: Sequence[int]) -> nn.Module:
    """The loss that `config` names; `labels` (N,) are TRAIN's."""
    return LOSSES[config.name](config, labels)


def balanced_weights(labels: Sequence[int]) -> tuple[float, float]:
    """N / (2 N_c) for both classes; raises DataError when one of them has no row."""
    counts = [sum(label == c for label in labels) for c in (0, 1)]
    if 0 in counts:
        raise DataError(
            f"balanced class weights need rows of both classes in TRAIN, and it has {counts[0]} and {counts[1]}"
        )
    return len(labels) / (2 * counts[0]), len(labels) / (2 * counts[1])

"""Losses of the classifier: one table from name to class. Each is a mean over rows, so parts of a batch average to it.

Shapes: B rows; logits (B, 2) float; targets (B, 2) float, the share of each class (one-hot unless rows were mixed).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.contracts.errors import DataError
from streetvision.models.config import LossConfig, LossName


class CrossEntropy(nn.Module):
    """Mean cross-entropy, with label smoothing (Szegedy et al., arXiv 1512.00567, section 7)."""

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


LOSSES: Mapping[LossName, type[CrossEntropy] | type[WeightedCrossEntropy] | type[FocalLoss]] = {
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

"""Losses of the classifier. Each is a mean over rows, so the losses of equal parts of a batch average to its own.

Shapes: B rows; logits (B, 2); targets are labels (B,) of 0 and 1, or class shares (B, 2) where rows were mixed.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.contracts.errors import DataError
from streetvision.models.config import LossConfig


class CrossEntropy(nn.Module):
    """Mean cross-entropy.

    Args:
        label_smoothing: Share of the target that is spread evenly over both classes.

    References:
        Szegedy et al., arXiv 1512.00567, section 7 (label smoothing).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as a scalar."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class WeightedCrossEntropy(nn.Module):
    """Mean of `weight[class] * cross-entropy`, divided by the number of rows and not by the sum of their weights.

    Args:
        class_weights: Weights of class 0 and class 1.
        label_smoothing: Share of the target that is spread evenly over both classes.
    """

    weights: Tensor

    def __init__(self, class_weights: tuple[float, float], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", torch.tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as a scalar."""
        rows = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        # The weight follows the true class shares, not the smoothed ones.
        return (_class_shares(targets, rows.dtype) @ self.weights.to(rows.dtype) * rows).mean()


class FocalLoss(nn.Module):
    """Focal loss over the softmax of two logits: mean of `-alpha_c * (1 - p_c)^gamma * log p_c`.

    Args:
        alpha: Weight of class 1; class 0 has 1 - alpha. None weighs both classes by 1.
        gamma: How much rows that are already classified well are down-weighted; 0 is cross-entropy.

    References:
        Lin et al., arXiv 1708.02002, equation 5.
    """

    weights: Tensor

    def __init__(self, alpha: float | None = None, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma
        weights = (1.0, 1.0) if alpha is None else (1.0 - alpha, alpha)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as a scalar."""
        log_p = F.log_softmax(logits, dim=1)
        # The clamp keeps the gradient of the power finite at p = 1.
        one_minus_p = -torch.expm1(log_p.clamp(max=-1e-7))
        weighted = _class_shares(targets, log_p.dtype) * self.weights.to(log_p.dtype)
        return -(weighted * one_minus_p**self.gamma * log_p).sum(dim=1).mean()


LOSSES: Mapping[str, type[CrossEntropy] | type[WeightedCrossEntropy] | type[FocalLoss]] = {
    "cross_entropy": CrossEntropy,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": FocalLoss,
}
"""Name -> class, whose arguments are the settings of that loss in LossConfig."""


def make_loss(config: LossConfig, labels: Sequence[int]) -> nn.Module:
    """Build the loss that `config` names.

    Args:
        config: Name and settings.
        labels: Labels (N,) of TRAIN, from which balanced class weights are computed.
    """
    settings = config.model_dump(exclude={"name"})
    if "class_weights" in settings:
        settings["class_weights"] = class_weights(config, labels)
    return LOSSES[config.name](**settings)


def class_weights(config: LossConfig, labels: Sequence[int]) -> tuple[float, float]:
    """Return the weights of class 0 and class 1 in the loss that `config` names; 1 for a loss without class weights."""
    weights = getattr(config, "class_weights", (1.0, 1.0))
    return balanced_weights(labels) if weights == "balanced" else weights


def balanced_weights(labels: Sequence[int]) -> tuple[float, float]:
    """Return N / (2 N_c) for both classes, whose mean over the N rows is 1; DataError if a class has no row."""
    counts = [sum(label == c for label in labels) for c in (0, 1)]
    if 0 in counts:
        raise DataError(
            f"balanced class weights need rows of both classes in TRAIN: it has {counts[0]} of class 0 and "
            f"{counts[1]} of class 1",
            "give 'training.loss.class_weights=[w0,w1]' or take another loss",
        )
    return len(labels) / (2 * counts[0]), len(labels) / (2 * counts[1])


def _class_shares(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels (B,) as one-hot rows (B, 2); class shares (B, 2) as they are."""
    shares = targets if targets.ndim > 1 else F.one_hot(targets, 2)
    return shares.to(dtype)

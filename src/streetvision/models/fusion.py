"""Cross-view fusion (CVFM): modes without parameters, and a module that is trained.

Shapes: B images, V views, C = 2 classes (class 1 is the positive one), P width of a view's features, L latent width.
Masked views (False) have no influence, even if their logits are not finite. Every image needs a view that is not
masked.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.contracts.errors import DataError
from streetvision.models.config import FusionConfig, FusionMode, TrainedFusionConfig, ViewsConfig
from streetvision.models.view_attention import CrossViewAttention
from streetvision.models.views import view_distances

MIN_LOG_ODDS = -80.0
"""Lower bound of a view's log-odds in noisy_or; exp(-80) is practically 0."""


# The modes in FUSIONS have the same arguments: logits (B, V, C), mask (B, V), content (B, V) and settings -> (B, C).
def simple_mean(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """Mean of the logits."""
    return _weighted_mean(logits, mask.to(logits.dtype), mask)


def weighted_uncertainty(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """Mean of the logits, weighted by certainty: the softmax over views of -entropy / temperature."""
    log_p = F.log_softmax(torch.where(mask[..., None], logits, 0), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)  # (B, V), nats
    return _weighted_mean(logits, _masked_softmax(-entropy / config.temperature, mask), mask)


def content_aware(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """Mean of the logits, weighted by the fraction of each view that is not padding."""
    return _weighted_mean(logits, torch.where(mask, content, 0).to(logits.dtype), mask)


def top_k(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """Mean of the logits of the k views with the highest log-odds of class 1.

    The k most confident views would be a poor choice: one tile with roadwork would lose to many confident tiles
    without it.
    """
    log_odds = (logits[..., 1] - logits[..., 0]).masked_fill(~mask, -torch.inf)
    order = log_odds.argsort(dim=1, descending=True, stable=True)
    # The inverse permutation: rank[b, v] is the position of view v in the order of image b.
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    return simple_mean(logits, mask & (rank < config.k), content, config)


def max_evidence(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """Logits of the view with the highest log-odds of class 1."""
    return top_k(logits, mask, content, config.model_copy(update={"k": 1}))


def noisy_or(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """Probability that at least one view is positive, if views are independent: p = 1 - prod(1 - p_v).

    The difference of the fused logits is the logit of p. Their mean is the mean over views, so that the logits of a
    single view are not changed.

    References:
        Pearl 1988, Probabilistic Reasoning in Intelligent Systems, section 4.3.2.
    """
    centre = simple_mean(logits, mask, content, config).mean(dim=-1)
    log_odds = logits[..., 1] - logits[..., 0]
    # -log(1 - p) = sum of softplus(log-odds). Below MIN_LOG_ODDS exp would round to 0 and its logarithm to -inf.
    total = torch.where(mask, F.softplus(log_odds.clamp(min=MIN_LOG_ODDS)), 0).sum(dim=1)
    # logit(p) = log(exp(total) - 1), in a form that does not overflow.
    fused = total + torch.log(-torch.expm1(-total))
    only_view = torch.where(mask, log_odds, 0).sum(dim=1)
    fused = torch.where(mask.sum(dim=1) == 1, only_view, fused)
    return torch.stack([centre - fused / 2, centre + fused / 2], dim=-1)


FUSIONS: Mapping[FusionMode, Callable[[Tensor, Tensor, Tensor, FusionConfig], Tensor]] = MappingProxyType(
    {
        "simple_mean": simple_mean,
        "weighted_uncertainty": weighted_uncertainty,
        "content_aware": content_aware,
        "top_k": top_k,
        "max": max_evidence,
        "noisy_or": noisy_or,
    }
)
"""Name -> (logits (B, V, C), mask (B, V), content (B, V), settings) -> fused logits (B, C)."""


class InferenceCVFM(nn.Module):
    """Cross-view fusion without parameters.

    Args:
        config: The mode and its settings.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, logits: Tensor, mask: Tensor, content: Tensor) -> Tensor:
        """Fuse the logits of views.

        Args:
            logits: (B, V, C).
            mask: (B, V), False for views that do not count.
            content: (B, V), fraction of each view that is not padding.

        Returns:
            (B, C).

        Raises:
            DataError: An image has no view.
        """
        _check_views(mask)
        return FUSIONS[self.config.mode](logits, mask, content, self.config)


class CVFMOutput(NamedTuple):
    """Result of TrainableCVFM for B images."""

    logits: Tensor
    """(B, C)"""
    latent: Tensor
    """(B, L)"""
    weights: Tensor
    """(B, V) weight of each view in the latent average; 0 where masked, with sum 1."""


class TrainableCVFM(nn.Module):
    """Trained cross-view fusion: the logits of the global view plus a correction from a shared latent space.

    A shared encoder maps the features of each view to the latent space. Their weighted average represents the image; a
    weight depends on the view's index, on its content and on its features. One decoder per view reconstructs the
    features of that view from the average (`reconstruction_loss`). The correction is 0 at the start, so an untrained
    module is exactly the single view. Any combination of views may be masked; without the global view, the mean of the
    other views' logits takes its place.

    Args:
        views: How images are split into views.
        width: P.
        classes: C.
        config: Latent width, dropout and attention heads.
    """

    def __init__(self, views: ViewsConfig, width: int, classes: int, config: TrainedFusionConfig) -> None:
        super().__init__()
        latent_dim = config.latent_dim
        self.encoder = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, latent_dim), nn.GELU(), nn.Linear(latent_dim, latent_dim)
        )
        self.attention = (
            CrossViewAttention(latent_dim, config.attention_heads, torch.from_numpy(view_distances(views)))
            if config.attention_heads
            else None
        )
        self.view_scores = nn.Parameter(torch.zeros(views.count))
        self.content_slope = nn.Parameter(torch.zeros(views.count))
        self.feature_score = nn.Parameter(torch.zeros(latent_dim))
        self.decoders = nn.Parameter(torch.randn(views.count, latent_dim, width) * latent_dim**-0.5)
        self.decoder_biases = nn.Parameter(torch.zeros(views.count, width))
        self.dropout = nn.Dropout(config.dropout)
        self.correction = nn.Linear(latent_dim, classes)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, features: Tensor, logits: Tensor, mask: Tensor, content: Tensor) -> CVFMOutput:
        """Fuse views.

        Args:
            features: (B, V, P).
            logits: (B, V, C).
            mask: (B, V), False for views that do not count.
            content: (B, V), fraction of each view that is not padding.

        Raises:
            DataError: An image has no view.
        """
        _check_views(mask)
        # Masked features may be NaN, and 0 * NaN is NaN, so they are replaced first.
        encoded = self.encoder(torch.where(mask[..., None], features, 0))  # (B, V, L)
        scores = self.view_scores + self.content_slope * torch.where(mask, content, 0) + encoded @ self.feature_score
        weights = _masked_softmax(scores, mask)  # (B, V)
        if self.attention is not None:
            encoded = self.attention(encoded, mask)
        latent = (weights[..., None] * encoded).sum(dim=1)  # (B, L)
        return CVFMOutput(single_view(logits, mask) + self.correction(self.dropout(latent)), latent, weights)

    def reconstruction_loss(self, latent: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error between decoded and standardized features, over views that are not masked.

        Args:
            latent: (B, L).
            features: (B, V, P).
            mask: (B, V).
        """
        decoded = torch.einsum("bl,vlp->bvp", latent, self.decoders) + self.decoder_biases
        target = F.layer_norm(torch.where(mask[..., None], features, 0), features.shape[-1:])
        return ((decoded - target)[mask] ** 2).mean()


def influence(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """Return the derivative of the fused log-odds by the log-odds of each view.

    It is the weight of the view if the mode is a weighted mean.

    Args:
        logits: (B, V, C).
        mask: (B, V).
        content: (B, V), fraction of each view that is not padding.
        config: The mode and its settings.

    Returns:
        (B, V).
    """
    # Callers may be in inference mode, whose tensors have no gradients.
    with torch.inference_mode(mode=False), torch.enable_grad():
        logits, mask, content = logits.clone().requires_grad_(), mask.clone(), content.clone()
        fused = FUSIONS[config.mode](logits, mask, content, config)
        (gradient,) = torch.autograd.grad((fused[:, 1] - fused[:, 0]).sum(), logits)
    derivative: Tensor = (gradient[..., 1] - gradient[..., 0]) / 2
    return derivative


def _check_views(mask: Tensor) -> None:
    empty = int((~mask.any(dim=1)).sum())
    if empty:
        raise DataError(f"{empty} of {len(mask)} images have no view with content", "add a global view to each image")


def single_view(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the logits (B, C) of the global view; the mean of the other views where it is masked."""
    _check_views(mask)
    mean = _weighted_mean(logits, mask.to(logits.dtype), mask)
    return torch.where(mask[:, :1], logits[:, 0], mean)


def _weighted_mean(logits: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, C) of logits (B, V, C) with weights (B, V) that are 0 where masked."""
    shares = weights / weights.sum(dim=1, keepdim=True)
    return (torch.where(mask[..., None], logits, 0) * shares[..., None]).sum(dim=1)


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=1)

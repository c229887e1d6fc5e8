"""One answer from many views of an image: fusion modes without parameters, and one that is trained.

Legend: B images, V views, C classes (two, class 1 is the one looked for), P width of a view's features, L latent width.
A masked view (False) changes nothing, whatever its logits are; every image needs a view that is not masked.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.contracts.errors import DataError
from streetvision.models.config import FusionConfig, FusionMode, TrainedFusionConfig, ViewsConfig
from streetvision.models.flex_fusion import CrossViewAttention, view_distances

LOWEST_MARGIN = -80.0
"""Of noisy_or: a margin of e to the minus 80 in odds is as good as none."""


def simple_mean(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """The mean of the logits."""
    return _weighted(logits, mask.to(logits.dtype), mask)


def weighted_uncertainty(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """The mean of the logits, sure views counting more: the softmax over views of -entropy / temperature."""
    log_p = F.log_softmax(torch.where(mask[..., None], logits, 0), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    return _weighted(logits, _softmax(-entropy / config.temperature, mask), mask)


def content_aware(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:  # noqa: ARG001
    """The mean of the logits, each view counting by the share of it that is not padding."""
    return _weighted(logits, torch.where(mask, content, 0).to(logits.dtype), mask)


def top_k(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """The mean of the logits of the k views with the most evidence for class 1.

    Not of the k most confident views: one tile with the roadwork would lose to all those without.
    """
    ranked = _evidence(logits, mask).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(mask.shape[1], device=mask.device).expand_as(ranked)
    )
    return simple_mean(logits, mask & (place < config.k), content, config)


def strongest(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """The logits of the view with the most evidence for class 1."""
    return top_k(logits, mask, content, config.model_copy(update={"k": 1}))


def noisy_or(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """Roadwork if any view shows it, each independently: p = 1 - prod(1 - p_v). Pearl 1988, section 4.3.2.

    The margin is the logit of that p; the mean of the two logits is kept, so that one view alone stays as it is.
    """
    middle = simple_mean(logits, mask, content, config).mean(dim=-1)
    margins = logits[..., 1] - logits[..., 0]
    # The odds are prod(1 + exp(margin)) - 1; below LOWEST_MARGIN exp would round to 0 and its logarithm to -inf.
    odds = torch.where(mask, F.softplus(margins.clamp(min=LOWEST_MARGIN)), 0).sum(dim=1)
    alone = torch.where(mask, margins, 0).sum(dim=1)
    margin = torch.where(mask.sum(dim=1) == 1, alone, odds + torch.log(-torch.expm1(-odds)))
    return torch.stack([middle - margin / 2, middle + margin / 2], dim=-1)


FUSIONS: Mapping[FusionMode, Callable[[Tensor, Tensor, Tensor, FusionConfig], Tensor]] = MappingProxyType(
    {
        "simple_mean": simple_mean,
        "weighted_uncertainty": weighted_uncertainty,
        "content_aware": content_aware,
        "top_k": top_k,
        "max": strongest,
        "noisy_or": noisy_or,
    }
)
"""Name -> logits (B, V, C), mask (B, V), content (B, V) and the settings to fused logits (B, C)."""


class InferenceCVFM(nn.Module):
    """Cross-view fusion without parameters, by the mode of its configuration."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, logits: Tensor, mask: Tensor, content: Tensor) -> Tensor:
        """Logits (B, V, C), mask (B, V), share of content (B, V) -> (B, C); DataError where an image has no view."""
        check_views(mask)
        return FUSIONS[self.config.mode](logits, mask, content, self.config)


class Fused(NamedTuple):
    """What the trained fusion makes of the views of B images."""

    logits: Tensor
    """(B, C)"""
    latent: Tensor
    """(B, L)"""
    weights: Tensor
    """(B, V) how much each view counted; 0 where masked, adding up to 1."""


class TrainableCVFM(nn.Module):
    """Cross-view fusion that learns: views meet in a latent space, and what is found there corrects their mean.

    A shared encoder maps each view's features to the latent space; their weighted average is the image. The weights
    belong to the place of a view and to how much content it has. A decoder for each place must be able to tell that
    view's features from the average (`reconstruction_loss`). The correction starts at 0, so an untrained module is
    `simple_mean` exactly. Views may be missing in any combination.
    """

    def __init__(self, cut: ViewsConfig, width: int, classes: int, config: TrainedFusionConfig) -> None:
        super().__init__()
        views = cut.count
        self.encoder = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.latent_dim),
            nn.GELU(),
            nn.Linear(config.latent_dim, config.latent_dim),
        )
        self.attention = (
            CrossViewAttention(config.latent_dim, config.attention_heads, view_distances(cut))
            if config.attention_heads
            else None
        )
        self.place = nn.Parameter(torch.zeros(views))
        self.content_slope = nn.Parameter(torch.zeros(views))
        self.decoders = nn.Parameter(torch.randn(views, config.latent_dim, width) * config.latent_dim**-0.5)
        self.decoder_biases = nn.Parameter(torch.zeros(views, width))
        self.dropout = nn.Dropout(config.dropout)
        self.correction = nn.Linear(config.latent_dim, classes)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, features: Tensor, logits: Tensor, mask: Tensor, content: Tensor) -> Fused:
        """Features (B, V, P), logits (B, V, C), mask (B, V) and content (B, V) of the views, fused.

        Raises DataError where an image has no view.
        """
        check_views(mask)
        weights = _softmax(self.place + self.content_slope * torch.where(mask, content, 0), mask)  # (B, V)
        seen = torch.where(mask[..., None], features, 0)
        found = self.encoder(seen)  # (B, V, L)
        if self.attention is not None:
            found = self.attention(found, mask)
        latent = (weights[..., None] * found).sum(dim=1)  # (B, L)
        mean = _weighted(logits, mask.to(logits.dtype), mask)
        return Fused(mean + self.correction(self.dropout(latent)), latent, weights)

    def reconstruction_loss(self, latent: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of the standardised features (B, V, P) of the views there are, told from the latent."""
        told = torch.einsum("bl,vlp->bvp", latent, self.decoders) + self.decoder_biases
        target = F.layer_norm(torch.where(mask[..., None], features, 0), features.shape[-1:])
        return ((told - target)[mask] ** 2).mean()


def influence(logits: Tensor, mask: Tensor, content: Tensor, config: FusionConfig) -> Tensor:
    """How far the fused margin moves with the margin of each view (B, V): its weight, where the mode is a mean."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        logits, mask, content = logits.clone().requires_grad_(), mask.clone(), content.clone()
        fused = FUSIONS[config.mode](logits, mask, content, config)
        (slopes,) = torch.autograd.grad((fused[:, 1] - fused[:, 0]).sum(), logits)
    moved: Tensor = (slopes[..., 1] - slopes[..., 0]) / 2
    return moved


def check_views(mask: Tensor) -> None:
    """Raise DataError where an image has no view at all."""
    empty = int((~mask.any(dim=1)).sum())
    if empty:
        raise DataError(f"{empty} of {len(mask)} images have no view that holds anything", "give each a global view")


def _weighted(logits: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, C) of logits (B, V, C) under weights (B, V) that are 0 where masked."""
    shares = weights / weights.sum(dim=1, keepdim=True)
    return (torch.where(mask[..., None], logits, 0) * shares[..., None]).sum(dim=1)


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=1)


def _evidence(logits: Tensor, mask: Tensor) -> Tensor:
    """How much speaks for class 1 in each view (B, V)."""
    return (logits[..., 1] - logits[..., 0]).masked_fill(~mask, -torch.inf)

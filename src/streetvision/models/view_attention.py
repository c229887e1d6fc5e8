"""Attention across the views of one image, in which views that are close to each other attend more.

Shapes: B images, V views, H heads, L latent width, E = L / H.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Backend = Literal["flex", "sdpa"]
MIN_FLEX_CHANNELS = 16
"""Channels of a head; with fewer, FlexAttention does not compile on CUDA."""


class CrossViewAttention(nn.Module):
    """Multi-head self-attention over views, with the bias -slope * distance and a residual connection.

    Each head learns a positive slope. FlexAttention is used on CUDA if the heads have enough channels, else
    scaled_dot_product_attention.

    Args:
        width: L.
        heads: H; divides L.
        distances: (V, V), from `views.view_distances`.

    References:
        ALiBi: Press et al. 2022, arXiv 2108.12409, with distances in the image instead of in a text.
    """

    distances: Tensor

    def __init__(self, width: int, heads: int, distances: Tensor) -> None:
        super().__init__()
        assert width % heads == 0, "heads must divide the latent width"
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.slopes = nn.Parameter(torch.zeros(heads))
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map latent views (B, V, L) and mask (B, V) to (B, V, L); masked views do not affect the others."""
        batch, views, width = tokens.shape
        use_flex = tokens.is_cuda and width // self.heads >= MIN_FLEX_CHANNELS
        backend: Backend = "flex" if use_flex else "sdpa"
        qkv = self.qkv(self.norm(tokens)).view(batch, views, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, V, E) each
        # Softplus keeps the slopes positive.
        attended = ATTENTIONS[backend](q, k, v, F.softplus(self.slopes), self.distances, mask)
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(batch, views, width))
        return tokens + mixed


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
    """Attend through scaled_dot_product_attention, which needs the bias as a tensor.

    Args:
        q: Queries (B, H, V, E).
        k: Keys (B, H, V, E).
        v: Values (B, H, V, E).
        slopes: (H,).
        distances: (V, V).
        mask: (B, V), False for views that must not be attended to.

    Returns:
        (B, H, V, E).
    """
    bias = -slopes[:, None, None] * distances
    allowed = mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~allowed, -torch.inf))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
    """Attend as `attend_sdpa` does, through FlexAttention, which computes the bias without storing it."""

    def biased_score(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(mask[b, key], score - slopes[h] * distances[query, key], -torch.inf)

    attended: Tensor = _flex_attention(compiled=q.is_cuda)(q, k, v, score_mod=biased_score)
    return attended


ATTENTIONS: Mapping[Backend, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"flex": attend_flex, "sdpa": attend_sdpa}
)
"""Name -> (q, k, v, slopes, distances, mask) -> (B, H, V, E)."""


@cache
def _flex_attention(*, compiled: bool) -> Any:
    # A local import, because it loads the compiler.
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention

"""Attention across the views of one image, in which views that lie near each other attend more.

Legend: B images, V views, H heads, L latent width, E = L / H.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.models.config import ViewsConfig
from streetvision.models.multi_view import plan_views

Backend = Literal["flex", "sdpa"]
LEAST_FLEX_CHANNELS = 16
"""Of a head; with fewer, FlexAttention does not compile on CUDA."""
UNIT = 10_000
"""Pixels a side of the image on which distances are measured, before they are scaled to 1."""


def view_distances(config: ViewsConfig) -> Tensor:
    """Distances (V, V) between the centres of views, in sides of the image; the global view is near every other."""
    boxes = torch.tensor(plan_views(UNIT, UNIT, config), dtype=torch.float32) / UNIT
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = torch.cdist(centres, centres)
    distances[0, :] = distances[:, 0] = 0
    return distances


class CrossViewAttention(nn.Module):
    """Each view takes from the others what it asks for: multi-head attention with a bias of -slope x distance.

    The slope of each head is learned and positive, as in ALiBi (Press et al. 2022, arXiv 2108.12409), over distances in
    the image instead of in a text. On CUDA through FlexAttention, elsewhere, and where a head has few channels, through
    scaled_dot_product_attention.
    """

    distances: Tensor

    def __init__(self, width: int, heads: int, distances: Tensor) -> None:
        super().__init__()
        assert width % heads == 0, "the latent width is a multiple of the heads"
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.slopes = nn.Parameter(torch.zeros(heads))
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Latent views (B, V, L) and mask (B, V) -> (B, V, L); what masked views hold reaches no other view."""
        batch, views, width = tokens.shape
        flex = tokens.is_cuda and width // self.heads >= LEAST_FLEX_CHANNELS
        backend: Backend = "flex" if flex else "sdpa"
        parts = self.qkv(self.norm(tokens)).view(batch, views, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (B, H, V, E) each
        attended = ATTENTIONS[backend](q, k, v, F.softplus(self.slopes), self.distances, mask)
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(batch, views, width))
        return tokens + mixed


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
    """q, k, v (B, H, V, E), slopes (H,), distances (V, V), mask (B, V) -> (B, H, V, E), with the bias as a tensor."""
    bias = -slopes[:, None, None] * distances
    allowed = mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(~allowed, -torch.inf))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
    """The same through FlexAttention, which computes the bias where it is used instead of storing it."""

    def near_and_seen(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(mask[b, key], score - slopes[h] * distances[query, key], -torch.inf)

    attended: Tensor = _flex_attention(compiled=q.is_cuda)(q, k, v, score_mod=near_and_seen)
    return attended


ATTENTIONS: Mapping[Backend, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"flex": attend_flex, "sdpa": attend_sdpa}
)
"""Name -> q, k, v, slopes, distances and mask to what each view takes from the others."""


@cache
def _flex_attention(*, compiled: bool) -> Any:
    # Imported where it is used: it loads the compiler.
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention

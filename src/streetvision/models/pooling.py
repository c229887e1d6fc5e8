"""From the tokens of a backbone to one vector an image.

Legend: B images, T tokens (prefix and patches), D the width of a token, P the width of the pooled vector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.models.backbone_spec import BackboneSpec


def pool_cls(tokens: Tensor, prefix_tokens: int) -> Tensor:  # noqa: ARG001
    """The CLS token: (B, T, D) -> (B, D)."""
    return tokens[:, 0]


def pool_mean(tokens: Tensor, prefix_tokens: int) -> Tensor:
    """The mean of the patch tokens, without CLS and registers: (B, T, D) -> (B, D)."""
    return tokens[:, prefix_tokens:].mean(dim=1)


def pool_cls_mean(tokens: Tensor, prefix_tokens: int) -> Tensor:
    """CLS beside the mean of the patch tokens: (B, T, D) -> (B, 2D)."""
    return torch.cat([pool_cls(tokens, prefix_tokens), pool_mean(tokens, prefix_tokens)], dim=1)


@dataclass(frozen=True)
class Pooling:
    """A way to pool, called with tokens (B, T, D) and the number of prefix tokens, and what it needs."""

    pool: Callable[[Tensor, int], Tensor]
    widths: int
    """P as a multiple of D."""
    needs_class_token: bool


POOLINGS: Mapping[str, Pooling] = {
    "cls": Pooling(pool_cls, widths=1, needs_class_token=True),
    "mean": Pooling(pool_mean, widths=1, needs_class_token=False),
    "cls_mean": Pooling(pool_cls_mean, widths=2, needs_class_token=True),
}


def get_pooling(name: str, spec: BackboneSpec) -> Pooling:
    """The pooling called `name`; raises ConfigError if there is none, or the backbone has no CLS token for it."""
    if name not in POOLINGS:
        raise unknown_name("pooling", name, POOLINGS)
    pooling = POOLINGS[name]
    if pooling.needs_class_token and not spec.class_token:
        raise ConfigError(f"pooling {name!r} needs a CLS token, and this backbone has none", "use pooling 'mean'")
    return pooling


def pooled_dim(name: str, spec: BackboneSpec) -> int:
    """P, the width of the pooled vector; raises as `get_pooling` does."""
    return get_pooling(name, spec).widths * spec.embed_dim

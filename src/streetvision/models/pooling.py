"""Pooling of the backbone's tokens to one vector per image.

Shapes: B images, T tokens (prefix and patches), D the width of a token, P the width of the pooled vector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.models.backbone_spec import BackboneSpec


def pool_cls(tokens: Tensor, prefix_tokens: int) -> Tensor:  # noqa: ARG001
    """Return the CLS token: (B, T, D) -> (B, D)."""
    return tokens[:, 0]


def pool_mean(tokens: Tensor, prefix_tokens: int) -> Tensor:
    """Return the mean of the patch tokens, without CLS and registers: (B, T, D) -> (B, D)."""
    return tokens[:, prefix_tokens:].mean(dim=1)


def pool_cls_mean(tokens: Tensor, prefix_tokens: int) -> Tensor:
    """Return the CLS token and the mean of the patch tokens, concatenated: (B, T, D) -> (B, 2D)."""
    return torch.cat([pool_cls(tokens, prefix_tokens), pool_mean(tokens, prefix_tokens)], dim=1)


@dataclass(frozen=True)
class Pooling:
    """A pooling function and its requirements."""

    pool: Callable[[Tensor, int], Tensor]
    """(tokens (B, T, D), number of prefix tokens) -> (B, P)."""
    width_factor: int
    """P / D."""
    needs_class_token: bool
    """Whether the backbone must have a CLS token."""


POOLINGS: Mapping[str, Pooling] = {
    "cls": Pooling(pool_cls, width_factor=1, needs_class_token=True),
    "mean": Pooling(pool_mean, width_factor=1, needs_class_token=False),
    "cls_mean": Pooling(pool_cls_mean, width_factor=2, needs_class_token=True),
}
"""Name -> pooling."""


def get_pooling(name: str, spec: BackboneSpec) -> Pooling:
    """Return the pooling `name`; raises ConfigError if it does not exist or needs a CLS token that is missing."""
    if name not in POOLINGS:
        raise unknown_name("pooling", name, POOLINGS)
    pooling = POOLINGS[name]
    if pooling.needs_class_token and not spec.class_token:
        raise ConfigError(f"pooling {name!r} needs a CLS token, but this backbone has none", "use pooling=mean")
    return pooling


def pooled_dim(name: str, spec: BackboneSpec) -> int:
    """Return P, the width of the pooled vector; raises like `get_pooling`."""
    return get_pooling(name, spec).width_factor * spec.embed_dim

"""Pooling of the backbone's tokens to one vector per image.

Shapes: B images, T tokens (prefix and patches), D the width of a token, L blocks, P the width of the pooled vector.
"""

from collections.abc import Callable, Mapping, Sequence

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


def pool_max(tokens: Tensor, prefix_tokens: int) -> Tensor:
    """Return the maximum of the patch tokens for each feature: (B, T, D) -> (B, D)."""
    return tokens[:, prefix_tokens:].amax(dim=1)


POOLINGS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"cls": pool_cls, "mean": pool_mean, "max": pool_max}
"""Name -> function (tokens (B, T, D), number of prefix tokens) -> (B, D)."""


class Pooling:
    """One or more of POOLINGS, applied to one or more blocks.

    Args:
        name: Names in POOLINGS, joined by an underscore, for example `cls_mean`.
        layers: L, the number of last blocks.
        spec: The backbone.

    Raises:
        ConfigError: A name does not exist or is repeated, the backbone has no CLS token, or it has fewer blocks.
    """

    def __init__(self, name: str, layers: int, spec: BackboneSpec) -> None:
        self.parts = tuple(name.split("_"))
        for part in self.parts:
            if part not in POOLINGS:
                raise unknown_name("pooling", part, POOLINGS)
        if len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"model.pooling={name} names a pooling twice", "name each of cls, mean, max at most once")
        if "cls" in self.parts and not spec.class_token:
            raise ConfigError(
                f"model.pooling={name} needs a CLS token, but this backbone has none", "set model.pooling=mean"
            )
        if layers > spec.layers:
            raise ConfigError(
                f"model.layers={layers}, but this backbone has {spec.layers} block(s) that can be read",
                f"set model.layers to at most {spec.layers}",
            )
        self.width = layers * len(self.parts) * spec.embed_dim
        self._prefix_tokens = spec.prefix_tokens

    def __call__(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map the tokens (B, T, D) of L blocks to (B, P): the poolings of the first block in order, and so on."""
        pooled = [POOLINGS[part](tokens, self._prefix_tokens) for tokens in blocks for part in self.parts]
        return torch.cat(pooled, dim=1)

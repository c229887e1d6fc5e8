"""Pooling: which tokens are used, and which backbones support it."""

from dataclasses import replace

import pytest
import torch

from streetvision.contracts.errors import ConfigError
from streetvision.models.backbone_spec import BackboneSpec
from streetvision.models.pooling import POOLINGS, get_pooling, pooled_dim

SPEC = BackboneSpec(
    embed_dim=4,
    patch_size=8,
    prefix_tokens=3,
    class_token=True,
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    lora_targets=(),
    architecture={},
)


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_has_its_documented_width(name: str) -> None:
    tokens = torch.randn(2, 7, SPEC.embed_dim, requires_grad=True)
    pooled = get_pooling(name, SPEC).pool(tokens, SPEC.prefix_tokens)
    assert pooled.shape == (2, pooled_dim(name, SPEC))
    pooled.sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[:, 1 : SPEC.prefix_tokens].any(), "registers are not pooled"


def test_mean_excludes_cls_and_registers() -> None:
    tokens = torch.cat([torch.full((1, 3, 4), 100.0), torch.arange(16.0).reshape(1, 4, 4)], dim=1)
    assert torch.equal(get_pooling("mean", SPEC).pool(tokens, 3), torch.tensor([[6.0, 7.0, 8.0, 9.0]]))
    both = get_pooling("cls_mean", SPEC).pool(tokens, 3)
    assert torch.equal(both, torch.tensor([[100.0] * 4 + [6.0, 7.0, 8.0, 9.0]]))


@pytest.mark.parametrize("prefix_tokens", [0, 4])
def test_cls_needs_a_class_token_even_if_there_are_registers(prefix_tokens: int) -> None:
    spec = replace(SPEC, prefix_tokens=prefix_tokens, class_token=False)
    for name in ("cls", "cls_mean"):
        with pytest.raises(ConfigError, match="needs a CLS token"):
            pooled_dim(name, spec)
    assert pooled_dim("mean", spec) == SPEC.embed_dim


def test_an_unknown_pooling_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="cls, cls_mean, mean"):
        pooled_dim("max", SPEC)

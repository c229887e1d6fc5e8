"""Pooling: which tokens are used, and which backbones support it."""

from dataclasses import replace

import pytest
import torch

from streetvision.contracts.errors import ConfigError
from streetvision.models.backbone_spec import BackboneSpec
from streetvision.models.pooling import POOLINGS, Pooling

SPEC = BackboneSpec(
    embed_dim=4,
    patch_size=8,
    layers=2,
    prefix_tokens=3,
    class_token=True,
    image_size=(16, 16),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    lora_targets=(),
    architecture={},
)


@pytest.mark.parametrize("name", [*POOLINGS, "cls_mean", "mean_max", "cls_mean_max"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_pooling_has_its_documented_width(name: str, layers: int) -> None:
    blocks = [torch.randn(2, 7, SPEC.embed_dim, requires_grad=True) for _ in range(layers)]
    pooling = Pooling(name, layers, SPEC)
    pooled = pooling(blocks)
    assert pooled.shape == (2, pooling.width) == (2, layers * len(name.split("_")) * SPEC.embed_dim)
    pooled.sum().backward()
    for tokens in blocks:
        assert tokens.grad is not None
        assert not tokens.grad[:, 1 : SPEC.prefix_tokens].any(), "registers are not pooled"


def test_patches_are_pooled_without_cls_and_registers_block_by_block() -> None:
    tokens = torch.cat([torch.full((1, 3, 4), 100.0), torch.arange(16.0).reshape(1, 4, 4)], dim=1)
    mean, highest = [6.0, 7.0, 8.0, 9.0], [12.0, 13.0, 14.0, 15.0]
    assert Pooling("mean", 1, SPEC)([tokens]).tolist() == [mean]
    assert Pooling("cls_mean_max", 1, SPEC)([tokens]).tolist() == [[100.0] * 4 + mean + highest]
    assert Pooling("mean_max", 2, SPEC)([-tokens, tokens]).tolist() == [
        [-value for value in mean] + [0.0, -1.0, -2.0, -3.0] + mean + highest
    ]


@pytest.mark.parametrize("prefix_tokens", [0, 4])
def test_cls_needs_a_class_token_even_if_there_are_registers(prefix_tokens: int) -> None:
    spec = replace(SPEC, prefix_tokens=prefix_tokens, class_token=False)
    for name in ("cls", "cls_mean"):
        with pytest.raises(ConfigError, match="needs a CLS token"):
            Pooling(name, 1, spec)
    assert Pooling("mean", 1, spec).width == SPEC.embed_dim


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [("average", 1, "cls, max, mean"), ("cls_cls", 1, "twice"), ("cls", 3, "at most 2")],
)
def test_a_pooling_that_is_not_possible_is_refused(name: str, layers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pooling(name, layers, SPEC)

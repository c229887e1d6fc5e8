"""A ViT-S/16 with something to lose: it computes what the packaged backbone computes, at the price of a ViT-S/16.

What a runtime or a precision costs in MCC can be seen on a model that has one only, and no weights of that size ship
with the package. So the packaged backbone is widened and deepened without changing its function, as in Net2Net (Chen
et al. 2016, arXiv 1511.05641). Legend: D the width of a token, h and H width of a head before and after.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from streetvision.models.backbone import BackboneConfig, load_backbone
from streetvision.models.network import Backbone
from streetvision.models.transformers_backbone import TransformersArchitecture, build_transformers

WIDTH, DEPTH, HEADS, HIDDEN, SIDE = 384, 12, 6, 1536, 224
"""Dimensions of a ViT-S/16."""
QUIET = 1e-6
"""Scale of what a block in between adds: nothing, but no compiler can know that and leave it out."""


def net2net_vit_s() -> Backbone:
    """The packaged backbone as a ViT-S/16 for 224 pixels; each of its channels is repeated three times."""
    small = load_backbone(BackboneConfig(source="embedded", name="dinov3_scenes"))
    wide = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": HIDDEN}
    before: Any = small.spec.architecture
    named = TransformersArchitecture(
        config={**before["config"], **wide, "image_size": SIDE},
        image_size=(SIDE, SIDE),
        mean=small.spec.mean,
        std=small.spec.std,
    )
    large = build_transformers(named, max_parameters=None).eval()
    with torch.no_grad():
        _carry(small.network, large.network)
    return large


def _carry(small: Any, large: Any) -> None:
    """Give the large network the small one's function."""
    token = torch.arange(WIDTH) % small.config.hidden_size
    hidden = torch.arange(HIDDEN) % small.config.intermediate_size
    head = _channels_of_heads(small.config)
    for name in ("cls_token", "mask_token", "register_tokens"):
        getattr(large.embeddings, name).copy_(getattr(small.embeddings, name)[..., token])
    _copy(small.embeddings.patch_embeddings, large.embeddings.patch_embeddings, out=token)
    _copy(small.norm, large.norm, out=token)
    blocks = DEPTH // len(small.model.layer)
    for number, block in enumerate(large.model.layer):
        if number % blocks:
            for scale in (block.layer_scale1, block.layer_scale2):
                scale.lambda1.fill_(QUIET)
            continue
        source = small.model.layer[number // blocks]
        for name in ("norm1", "norm2"):
            _copy(getattr(source, name), getattr(block, name), out=token)
        for name in ("layer_scale1", "layer_scale2"):
            getattr(block, name).lambda1.copy_(getattr(source, name).lambda1[token])
        for name in ("q_proj", "k_proj", "v_proj"):
            _copy(getattr(source.attention, name), getattr(block.attention, name), out=head, into=token)
        _copy(source.attention.o_proj, block.attention.o_proj, out=token, into=head)
        _copy(source.mlp.up_proj, block.mlp.up_proj, out=hidden, into=token)
        _copy(source.mlp.down_proj, block.mlp.down_proj, out=token, into=hidden)
        # Attention divides by the root of a head's width, which has grown.
        growth = math.sqrt(WIDTH / HEADS / (small.config.hidden_size / small.config.num_attention_heads))
        block.attention.q_proj.weight.mul_(growth)
        block.attention.q_proj.bias.mul_(growth)


def _channels_of_heads(config: Any) -> Tensor:
    """(WIDTH,) which channel of the small network's heads each of the large one's is, or -1.

    A head is two halves of two axes of rotary frequencies. The large network has twice as many frequencies in the same
    range, so every second one is a frequency of the small network.
    """
    heads, narrow, broad = config.num_attention_heads, config.hidden_size // config.num_attention_heads, WIDTH // HEADS
    grid = torch.full((HEADS, 4, broad // 4), -1)
    grid[:heads, :, :: broad // narrow] = torch.arange(config.hidden_size).view(heads, 4, narrow // 4)
    return grid.flatten()


def _copy(small: nn.Module, large: nn.Module, *, out: Tensor, into: Tensor | None = None) -> None:
    """Copy weights and biases by the channel maps; an input that occurs n times is weighted by 1/n."""
    weight: Tensor = small.get_parameter("weight")
    bias: Tensor | None = getattr(small, "bias", None)
    if into is not None:
        shares = 1.0 / torch.bincount(into[into >= 0])[into.clamp(min=0)]
        weight = weight[:, into.clamp(min=0)] * torch.where(into >= 0, shares, 0.0)
    known = (out >= 0).view(-1, *[1] * (weight.dim() - 1))
    large.get_parameter("weight").copy_(torch.where(known, weight[out.clamp(min=0)], 0.0))
    if bias is not None:
        large.get_parameter("bias").copy_(torch.where(out >= 0, bias[out.clamp(min=0)], 0.0))

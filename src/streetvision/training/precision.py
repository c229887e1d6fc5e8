"""Precision of a training: fp32, or bf16 where the device has it. fp16 is not offered: it overflows with DINOv3."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streetvision.models.device import has_fast_bf16
from streetvision.training.config import PrecisionName


def lightning_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Return the precision plugin for Lightning's Trainer; `auto` is bf16 where the device has it, else fp32."""
    if name == "fp32" or (name == "auto" and not has_fast_bf16(device)):
        return Precision()
    return Bf16OnCpu() if device.type == "cpu" else MixedPrecision("bf16-mixed", device.type)


class Bf16OnCpu(MixedPrecision):
    """Autocast to bf16 on the CPU; where gradients are computed, attention is not fused."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Run a step under autocast, with attention as matrix products."""
        with super().forward_context(), UnfusedAttention():
            yield


class UnfusedAttention(TorchFunctionMode):
    """Under autocast on the CPU, compute attention by two matrix products and a softmax where gradients are needed.

    The backward pass of torch's fused attention is slow in bf16 on a CPU. Its forward pass is fast, so it is kept where
    no gradient is needed. `streetvision dev bench training` compares a step with one that fuses attention.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Torch calls this in place of each of its functions."""
        if func is F.scaled_dot_product_attention and torch.is_autocast_enabled("cpu"):
            func = _attention
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """The same as F.scaled_dot_product_attention; a causal mask or another option is left to that."""
    needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
    if not needs_gradient or is_causal or any(options.values()):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in fp32
        shares = scores.softmax(-1)
    return F.dropout(shares, dropout_p) @ value

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
    """Autocast to bf16 on the CPU, except for attention, which is computed in fp32."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Run a step under autocast, with attention in fp32."""
        with super().forward_context(), AttentionInFp32():
            yield


class AttentionInFp32(TorchFunctionMode):
    """Under autocast on the CPU, compute attention in fp32 and round its result to the autocast type.

    The backward pass of torch's fused attention is slow in bf16 on a CPU: a training step of the packaged ViT takes
    longer with it than in fp32, and less time if everything but attention is in bf16.
    `streetvision dev bench training` measures the three.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Torch calls this in place of each of its functions."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            attended = func(*map(_to_float32, args), **{name: _to_float32(value) for name, value in kwargs.items()})
        return attended.to(torch.get_autocast_dtype("cpu"))


def _to_float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

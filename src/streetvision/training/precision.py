"""In which precision a model learns: fp32, or bf16 where the device has it; never fp16, which overflows with DINOv3."""

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
    """What Lightning's Trainer computes with; `auto` is bf16 where the device has it, else fp32."""
    if name == "fp32" or (name == "auto" and not has_fast_bf16(device)):
        return Precision()
    return Bf16OnCpu() if device.type == "cpu" else MixedPrecision("bf16-mixed", device.type)


class Bf16OnCpu(MixedPrecision):
    """bf16 for all that autocast gives it to, but for attention."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Autocast around a step, attention left out of it."""
        with super().forward_context(), AttentionInFp32():
            yield


class AttentionInFp32(TorchFunctionMode):
    """Under autocast on the CPU, attention is computed in fp32, and its result rounded.

    Torch's fused attention is slow there in bf16 on its way back: steps of the packaged ViT take longer with it than in
    fp32, and less time with all but attention in bf16. `streetvision dev bench training` times the three.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        named = kwargs or {}
        if func is not F.scaled_dot_product_attention or not torch.is_autocast_enabled("cpu"):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_widened, args), **{name: _widened(value) for name, value in named.items()})
        return found.to(torch.get_autocast_dtype("cpu"))


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

"""What this machine can do, and how a model is made to use it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from streetvision.models.config import CompileConfig, HardwareConfig


def pick_device() -> torch.device:
    """The first CUDA device, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; emulation would be slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def default_jobs() -> int:
    """Processes to run at a time: one a core, on a GPU one."""
    return (os.cpu_count() or 1) if pick_device().type == "cpu" else 1


def create_model_with_compile(model: nn.Module, config: CompileConfig) -> Callable[[Tensor], Tensor]:
    """What to call in place of `model`: torch.compile of it when `config` asks, else the model itself.

    Parameters are shared; state dicts are to be taken from `model`, whose keys carry no prefix. The stance of the
    compiler holds for the whole process.
    """
    if not config.enabled:
        return model
    torch.compiler.set_stance(config.stance)
    compiled: Callable[[Tensor], Tensor] = torch.compile(
        model, mode=config.mode, fullgraph=config.fullgraph, dynamic=config.dynamic
    )
    return compiled


@contextmanager
def memory_as_asked(model: nn.Module, config: HardwareConfig, device: torch.device) -> Iterator[None]:
    """Lay out the weights for good, and on a GPU let fp32 products use TF32, or not, for as long as the block lasts.

    What is scored behind it is not rounded because something was trained.
    """
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]

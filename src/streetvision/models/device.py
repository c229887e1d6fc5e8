"""The device of this machine: which one is used, what it can do, and how its memory and precision are set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from streetvision.contracts.errors import ConfigError
from streetvision.io.process_pool import usable_cores
from streetvision.models.config import HardwareConfig


def pick_device() -> torch.device:
    """Return the first CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively; emulation would be slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def uses_compiler(config: HardwareConfig) -> bool:
    """Return whether the classifier is compiled on this machine."""
    return config.compile is True or (config.compile == "auto" and pick_device().type == "cuda")


def job_count(jobs: int | None) -> int:
    """Return how many processes to run in parallel.

    Args:
        jobs: The number that was set; None: one per CPU core, or one if there is a GPU.

    Raises:
        ConfigError: `jobs` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs is {jobs}, but at least one process is needed", "set it to 1 or more, or leave it out")
    return jobs or (usable_cores() if pick_device().type == "cpu" else 1)


@contextmanager
def hardware_settings(model: nn.Module, config: HardwareConfig, device: torch.device) -> Iterator[None]:
    """Apply `channels_last` to the model permanently, and `tf32` to the CUDA device until the block ends.

    TF32 is restored afterwards, so that scores computed after a training are not rounded because of it.
    """
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if device.type != "cuda":
        yield
        return
    matmul_precision = torch.get_float32_matmul_precision()
    cudnn_tf32 = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        torch.backends.cudnn.allow_tf32 = cudnn_tf32

"""What this machine can do."""

from typing import Literal

import torch

from streetvision.training.config import PrecisionName


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


def lightning_precision(name: PrecisionName, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """Lightning's word for a precision; never fp16, which overflows with DINOv3."""
    if name == "bf16" or (name == "auto" and has_fast_bf16(device)):
        return "bf16-mixed"
    return "32-true"

"""Versions, device and disk of this machine."""

import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

from streetvision.data.image_file import check_decoders
from streetvision.io.manifests import versions
from streetvision.io.process_pool import usable_cores
from streetvision.pipeline.console import Console


def examine_machine(console: Console) -> None:
    """Print versions, device and free disk space, and try the image decoders.

    Raises:
        MachineError: A decoder does not work.
    """
    packages = dict(versions())
    console.line("python", f"{packages.pop('python')} on {platform.system()} {platform.machine()}")
    for package, version in packages.items():
        console.line(package, version)
    if find_spec("torch") is None:
        device = f"cpu: {usable_cores()} cores, without PyTorch: for bundles of ONNX Runtime and OpenVINO"
        advice: str | None = "pip install 'streetvision[train]' to train, evaluate and export"
    else:
        device = describe_device()
        advice = "training=frozen takes the least time without a GPU" if device.startswith("cpu") else None
    console.line("device", device)
    check_decoders()
    console.line("decoders", "JPEG, PNG, WebP, BMP, GIF and TIFF work")
    console.line("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in this folder")
    if advice:
        console.line("advice", advice)


def describe_device() -> str:
    """The device that models run on, for example `cpu: 2 cores, fp32 only`."""
    import torch

    from streetvision.models.device import has_fast_bf16, pick_device

    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{usable_cores()} cores"
    return f"{device.type}: {name}, {'with bf16' if has_fast_bf16(device) else 'fp32 only'}"

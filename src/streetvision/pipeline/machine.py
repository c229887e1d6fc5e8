"""What this machine has, and what is missing."""

import os
import platform
import shutil
from pathlib import Path

import torch

from streetvision.io.manifests import versions
from streetvision.models.device import has_fast_bf16, pick_device
from streetvision.pipeline.console import Console


def examine_machine(console: Console) -> None:
    """Print what decides how fast and how exact a run is here."""
    found = versions()
    console.line("python", f"{found.pop('python')} on {platform.system()} {platform.machine()}")
    for package, version in found.items():
        console.line(package, version)
    console.line("device", describe_device())
    console.line("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here")
    if pick_device().type == "cpu":
        console.line("advice", "without a GPU, training=frozen is the mode to start with")


def describe_device() -> str:
    """The device that models run on, in a few words."""
    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    return f"{device.type}: {name}, {'with bf16' if has_fast_bf16(device) else 'fp32 only'}"

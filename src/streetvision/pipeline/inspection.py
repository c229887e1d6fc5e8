"""Looking without running: what a data set is like, and what this machine has."""

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from streetvision.contracts.split_contracts import Index
from streetvision.data.index import list_images
from streetvision.data.listing import BadFile
from streetvision.data.scan import Scan, scan_images
from streetvision.eval.metrics import roc_auc
from streetvision.io.manifests import versions
from streetvision.pipeline.compose import compose_config
from streetvision.pipeline.console import Console
from streetvision.training.hardware import has_fast_bf16, pick_device

SHOWN = 10
CONFOUNDED_AUC = 0.8
"""Above this, image size alone tells the classes apart better than is good for a claim about what a model sees."""


def check_data(root: str, overrides: Sequence[str], *, console: Console) -> None:
    """Read every image of `root` and print what is unusable, doubled or given away by its size."""
    config = compose_config(overrides, beneath={"data": {"root": root}})
    data = config.data
    with tempfile.TemporaryDirectory() as imported:
        listing = list_images(
            root,
            class_names=data.class_names,
            import_to=Path(imported),
            hf_split=data.hf_split,
            group_column=data.group_column,
            source_column=data.source_column,
        )
        scan = scan_images(listing, class_names=data.class_names, limits=config.loader.limits, progress=console)
    _show(scan, console)


def _show(scan: Scan, console: Console) -> None:
    rows, names = scan.index.rows, scan.index.class_names
    counts = [sum(row.label == label for row in rows) for label in (0, 1)]
    groups = {row.group for row in rows if row.group is not None}
    console.line("images", f"{len(rows)}: {counts[0]} {names[0]}, {counts[1]} {names[1]}")
    console.line("groups", f"{len(groups)}" if groups else "none: every image is dealt on its own")
    console.line("copies", f"{scan.duplicates} repeat the content of another image; they stay in one split")
    _show_files("unusable", scan.bad, console)
    _show_files("left out", scan.left_out, console)
    if 0 not in counts:
        _show_size(scan.index, console)
    if not groups:
        console.warn("frames of one ride or place leak between splits unless a group column names them (CSV index)")


def _show_files(label: str, files: Sequence[BadFile], console: Console) -> None:
    console.line(label, str(len(files)))
    for file in files[:SHOWN]:
        console.line("", f"{file.path} {file.reason}")
    if len(files) > SHOWN:
        console.line("", f"and {len(files) - SHOWN} more")


def _show_size(index: Index, console: Console) -> None:
    """How well the number of pixels alone would rank the classes."""
    pixels = [row.width * row.height for row in index.rows]
    largest = max(pixels)
    auc = roc_auc([row.label for row in index.rows], [count / largest for count in pixels])
    auc = max(auc, 1 - auc)
    console.line("size", f"alone it ranks the classes with ROC-AUC {auc:.2f} (0.50 says nothing)")
    if auc > CONFOUNDED_AUC:
        console.warn("image size gives the label away; bring both classes to the same sizes before you trust a score")


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

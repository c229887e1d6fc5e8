"""Run a model over rows of the data set; the only place that makes Scores."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streetvision.contracts.policies import FusionRef
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import LoaderConfig
from streetvision.data.datamodule import Batch, EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.io.scores import Scores, rows_digest
from streetvision.models.device import pick_device
from streetvision.models.fused import Model, images_per_batch


def score_rows(
    model: Model,
    rows: tuple[Row, ...],
    *,
    root: Path,
    split: Split,
    model_sha256: str,
    fusion: FusionRef | None = None,
    loader: LoaderConfig,
    progress: Progress,
) -> Scores:
    """Compute the logits of `rows`.

    Args:
        model: A classifier, or one with a fusion of views.
        rows: The rows of `split`.
        root: Folder that the paths of the rows are relative to.
        split: Recorded in the scores.
        model_sha256: Digest of the checkpoint that `model` was loaded from, recorded in the scores.
        fusion: Digests of the fusion that `model` was loaded from, recorded in the scores.
        loader: Batch size and worker processes.
        progress: Shows a progress bar.
    """
    with evaluation_loader(model, rows, root=root, loader=loader) as batches:
        logits, labels = apply_to_batches(
            model, batches, total=len(batches), label=f"score {split.value}", progress=progress
        )
    return Scores(logits, labels, split=split, model_sha256=model_sha256, rows_sha256=rows_digest(rows), fusion=fusion)


def evaluation_loader(model: Model, rows: tuple[Row, ...], *, root: Path, loader: LoaderConfig) -> ImageLoader:
    """Return a loader of `rows` in order, with each image prepared for `model`."""
    dataset = ImageDataset(
        rows, root=root, transform=model.prepare, limits=loader.limits, decode_size=model.decode_size
    )
    in_order = EpochBatchSampler(len(rows), batch_size=images_per_batch(model, loader.batch_size), shuffle=False)
    return ImageLoader(dataset, in_order, workers=loader.worker_count)


def apply_to_batches(
    function: Callable[[Any], Tensor],
    batches: Iterable[Batch],
    *,
    total: int,
    label: str,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Apply `function` to all batches in eval mode, in fp32 and without gradients.

    Args:
        function: A module, or a bound method of one. The module is moved to the device of this machine.
        batches: Batches of (inputs, labels).
        total: Number of batches, for the progress bar.
        label: Label of the progress bar.
        progress: Shows the progress bar.

    Returns:
        Outputs (N, ...) float32 and labels (N,) int64, on the CPU.
    """
    module = getattr(function, "__self__", function)
    assert isinstance(module, nn.Module)
    device = pick_device()
    module.to(device).eval()
    outputs, labels = [], []
    with torch.inference_mode():
        for inputs, batch_labels in progress.track(batches, total=total, label=label):
            outputs.append(function(inputs.to(device, non_blocking=True)).float().cpu())
            labels.append(batch_labels)
    return torch.cat(outputs), torch.cat(labels)

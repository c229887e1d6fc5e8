"""A model over rows: the only maker of Scores, and where images become what it takes."""

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
    """The logits of `rows` from the model that the checkpoint with digest `model_sha256`, and `fusion`, describe."""
    with evaluation_loader(model, rows, root=root, loader=loader) as batches:
        logits, labels = run_over(model, batches, total=len(batches), label=f"score {split.value}", progress=progress)
    return Scores(logits, labels, split=split, model_sha256=model_sha256, rows_sha256=rows_digest(rows), fusion=fusion)


def evaluation_loader(model: Model, rows: tuple[Row, ...], *, root: Path, loader: LoaderConfig) -> ImageLoader:
    """Rows in order, each image as the model takes it."""
    dataset = ImageDataset(rows, root=root, transform=model.prepare, limits=loader.limits)
    in_order = EpochBatchSampler(len(rows), batch_size=images_per_batch(model, loader.batch_size), shuffle=False)
    return ImageLoader(dataset, in_order, workers=loader.worker_count)


def run_over(
    function: Callable[[Any], Tensor],
    batches: Iterable[Batch],
    *,
    total: int,
    label: str,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """`function` of every batch of images, and the labels: ((N, ...) float32, (N,) int64), on the CPU.

    `function` is a model or one of its methods; it runs in eval mode, in fp32, without gradients.
    """
    owner = getattr(function, "__self__", function)
    assert isinstance(owner, nn.Module)
    device = pick_device()
    owner.to(device).eval()
    outputs, labels = [], []
    with torch.inference_mode():
        for images, batch_labels in progress.track(batches, total=total, label=label):
            outputs.append(function(images.to(device, non_blocking=True)).float().cpu())
            labels.append(batch_labels)
    return torch.cat(outputs), torch.cat(labels)

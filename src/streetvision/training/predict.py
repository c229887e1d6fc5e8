"""A model over rows: the only maker of Scores, and the only place that computes features."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.augmentation import get_val_transforms
from streetvision.data.datamodule import Batch, EpochBatches, ImageDataset, ImageLoader, LoaderConfig
from streetvision.io.scores import Scores, rows_digest
from streetvision.models.module import Classifier
from streetvision.training.hardware import pick_device


def score_rows(
    classifier: Classifier,
    rows: tuple[Row, ...],
    *,
    root: Path,
    split: Split,
    model_sha256: str,
    loader: LoaderConfig,
    progress: Progress,
) -> Scores:
    """The logits of `rows` from the classifier that the checkpoint with digest `model_sha256` holds."""
    batches = evaluation_loader(classifier, rows, root=root, loader=loader)
    logits, labels = run_over(classifier, batches, total=len(batches), label=f"score {split.value}", progress=progress)
    return Scores(logits, labels, split=split, model_sha256=model_sha256, rows_sha256=rows_digest(rows))


def evaluation_loader(
    classifier: Classifier, rows: tuple[Row, ...], *, root: Path, loader: LoaderConfig
) -> ImageLoader:
    """Rows in order, each image as the classifier takes it."""
    transform = get_val_transforms(image_size=classifier.description.image_size)
    dataset = ImageDataset(rows, root=root, transform=transform, limits=loader.limits)
    in_order = EpochBatches(len(rows), batch_size=loader.batch_size, shuffle=False)
    return ImageLoader(dataset, in_order, workers=loader.worker_count)


def run_over(
    function: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    total: int,
    label: str,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """`function` of every batch of images, and the labels: ((N, ...) float32, (N,) int64), on the CPU.

    `function` is a Classifier or one of its methods; it runs in eval mode, in fp32, without gradients.
    """
    owner = getattr(function, "__self__", function)
    assert isinstance(owner, Classifier)
    device = pick_device()
    owner.to(device).eval()
    outputs, labels = [], []
    with torch.inference_mode():
        for images, batch_labels in progress.track(batches, total=total, label=label):
            outputs.append(function(images.to(device, non_blocking=True)).float().cpu())
            labels.append(batch_labels)
    return torch.cat(outputs), torch.cat(labels)

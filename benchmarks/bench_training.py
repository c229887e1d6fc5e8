"""`streetvision dev bench training`: a head on features, adapters, and the contrastive loss, compared with peers.

lightly is in the dependency group `bench`; where it is not installed its figure is nan, and named so.
"""

import importlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench_precision import bench_precision
from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.progress import Progress, Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import get_train_transforms, get_val_transforms
from streetvision.data.config import DEFAULT_LIMITS, AugmentationConfig, LoaderConfig
from streetvision.data.datamodule import EpochBatchSampler, FeatureBatches, ImageDataset, ImageLoader
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import list_images
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import LinearHeadConfig, ModelConfig
from streetvision.models.module import load_classifier, make_head
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from streetvision.training.config import FrozenConfig, PeftConfig
from streetvision.training.features import FeatureCache
from streetvision.training.finetune_modes import prepare
from streetvision.training.ssl.losses import SimCLRLoss
from streetvision.training.trainer import TrainerOptions, fit

IMAGES, TRAINED, EVALUATED, BATCH, IMAGE_SIZE = 512, 96, 16, 16, 224
VIT = "deit_tiny_patch16_224"
CONTRASTED, WIDTH, TEMPERATURE = 4096, 256, 0.1
Loss = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (N, D) of two views -> their loss."""
LIGHTLY = "NTXentLoss of lightly"
CLOSE = 1e-4
"""Largest relative difference from the peer's gradient before figures of it would compare different things."""


def bench_training(progress: Progress) -> list[Figure]:
    """Seconds of the three and of steps in bf16, and the memory of the contrast."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "scenes", SceneConfig(count=IMAGES), progress)
        listing = list_images(str(folder / "scenes"), class_names=("None", "Roadwork"), import_to=folder)
        rows = scan_images(listing, class_names=("None", "Roadwork")).index.rows
        head, adapters = _head(rows, listing.root, progress), _adapters(rows, listing.root)
        return [head, adapters, *bench_precision(), *_contrast()]


def _head(rows: tuple[Row, ...], root: Path, progress: Progress) -> Figure:
    """Ten epochs of a head on cached features, against computing the features once."""
    classifier = load_classifier(
        ModelConfig(backbone=BackboneConfig(source="embedded", name="dinov3_scenes"), pooling="cls_mean")
    )

    def compute_features() -> tuple[Tensor, Tensor]:
        with tempfile.TemporaryDirectory() as empty:
            cache = FeatureCache(Path(empty), classifier, loader=LoaderConfig(), progress=progress)
            return cache.features(rows, root=root, name="bench")

    features, labels = compute_features()
    config = FrozenConfig(epochs=10)

    def ten_epochs() -> None:
        torch.manual_seed(0)
        batches = FeatureBatches(features, labels, batch_size=256, seed=0)
        head = make_head(LinearHeadConfig(), features.shape[1])
        validation = FeatureBatches(features, labels, batch_size=4096)
        fit(head, batches, validation, config=config, options=TrainerOptions(Silent()))

    ours, baseline = interleaved_median(ten_epochs, compute_features)
    return Figure(f"ten epochs of the head, {IMAGES} images", ours, "features of the same images, once", baseline)


def _adapters(rows: tuple[Row, ...], root: Path) -> Figure:
    """An epoch of training=peft and an evaluation on other images, compared with a hand-written loop."""
    train, validation = rows[:TRAINED], rows[TRAINED : TRAINED + EVALUATED]
    config = PeftConfig(epochs=1, batch_size=BATCH, learning_rate=2e-3)

    def ours() -> None:
        torch.manual_seed(0)
        classifier = load_classifier(ModelConfig(backbone=BackboneConfig(source="timm", name=VIT)))
        prepare(classifier, config)
        fit(
            classifier,
            _loader(train, root, get_train_transforms(AugmentationConfig(), image_size=IMAGE_SIZE), shuffle=True),
            _loader(validation, root, get_val_transforms(image_size=IMAGE_SIZE), shuffle=False),
            config=config,
            options=TrainerOptions(Silent()),
        )

    seconds = interleaved_median(ours, partial(_by_hand, train, validation, root), repeats=3)
    label = f"{VIT}, adapters, an epoch of {TRAINED} images"
    return Figure(label, seconds[0], "the same by hand in timm, PEFT and torch", seconds[1])


def _loader(rows: tuple[Row, ...], root: Path, transform: Any, *, shuffle: bool) -> ImageLoader:
    dataset = ImageDataset(rows, root=root, transform=transform, limits=DEFAULT_LIMITS)
    return ImageLoader(dataset, EpochBatchSampler(len(rows), batch_size=BATCH, shuffle=shuffle), workers=0)


def _by_hand(train: tuple[Row, ...], validation: tuple[Row, ...], root: Path) -> None:
    """A loop as one writes it without this project: PIL, a DataLoader, timm, PEFT."""
    import timm
    from peft import LoraConfig, inject_adapter_in_model
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    changes = [v2.RandomResizedCrop(IMAGE_SIZE, (0.7, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)]
    training, evaluation = v2.Compose([*changes, *end]), v2.Compose([v2.Resize((IMAGE_SIZE, IMAGE_SIZE)), *end])

    class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self, rows: tuple[Row, ...], transform: Callable[[object], Tensor]) -> None:
            self.rows, self.transform = rows, transform

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            row = self.rows[index]
            return self.transform(Image.open(root / row.path).convert("RGB")), row.label

    torch.manual_seed(0)
    model: Any = timm.create_model(VIT, num_classes=2)
    targets = ["qkv", "attn.proj", "fc1", "fc2"]
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=32, target_modules=targets), model)
    model.get_classifier().requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    batches = DataLoader(Images(train, training), batch_size=BATCH, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(batches))
    model.train()
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        for images, _ in DataLoader(Images(validation, evaluation), batch_size=BATCH):
            model(images).argmax(dim=1)


def _contrast() -> list[Figure]:
    """Forward and backward of the contrastive loss, after checking that both give the same loss and gradient."""
    label, ours, theirs = f"SimCLR loss, forward and backward, N = {CONTRASTED:,}", SimCLRLoss(TEMPERATURE), _lightly()
    if theirs is None:
        baseline, absent = f"{LIGHTLY}, which is not installed", np.nan
        seconds, memory = (
            (interleaved_median(partial(_step, ours), lambda: None, repeats=3)[0], absent),
            (_peak(ours), absent),
        )
    else:
        for one, other in zip(_step(ours), _step(theirs), strict=True):
            torch.testing.assert_close(one, other, rtol=CLOSE, atol=1e-7)
        baseline = LIGHTLY
        seconds, memory = (
            interleaved_median(partial(_step, ours), partial(_step, theirs), repeats=3),
            (_peak(ours), _peak(theirs)),
        )
    return [
        Figure(label, seconds[0], baseline, seconds[1]),
        Figure(f"{label}: memory of a step", memory[0], baseline, memory[1], unit="MB"),
    ]


def _lightly() -> Loss | None:
    """The peer; None where it is not installed."""
    try:
        found: Loss = importlib.import_module("lightly.loss").NTXentLoss(TEMPERATURE)
    except ImportError:
        return None
    return found


def _step(loss: Loss) -> tuple[Tensor, Tensor]:
    """The loss (1,) and its gradient at the first views (N, D)."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(CONTRASTED, WIDTH, generator=generator)
    second = (first + 0.5 * torch.randn(CONTRASTED, WIDTH, generator=generator)).requires_grad_()
    first.requires_grad_()
    value = loss(first, second)
    value.backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    return value.detach()[None], first.grad


def _peak(loss: Loss) -> float:
    """Peak memory of one step in MB, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_grown, loss).result()


def _grown(loss: Loss) -> float:
    before = _high_water()
    _step(loss)
    return _high_water() - before


def _high_water() -> float:
    """Peak memory of this process in MB; nan where the system has no /proc. `ru_maxrss` would survive an exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return np.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024

"""`streetvision dev bench gpu`: training steps of a ViT-L/16 on a CUDA device, against fp32 and the device's limit.

Every step is one of `train_module`, as in the phases, on random images in memory.
"""

# ruff: noqa: ARG002 (Lightning hands its hooks more than they use)

import copy
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Progress, Silent
from streetvision.data.datamodule import Batch
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import HardwareConfig, ModelConfig, ViewsConfig
from streetvision.models.device import pick_device
from streetvision.models.losses import make_loss
from streetvision.models.module import Classifier, load_classifier
from streetvision.models.view_attention import attend_flex, attend_sdpa
from streetvision.models.views import view_distances
from streetvision.training.config import FullConfig, MixedPrecisionConfig, PeftConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.lightning_module import BaseModule, EpochLogger
from streetvision.training.ssl.config import SimCLRConfig
from streetvision.training.ssl.explora import ExPLoRAModule, Student, prepare_backbone
from streetvision.training.supervised import SupervisedModule
from streetvision.training.trainer import TrainerOptions, train_module

VIT, IMAGE_SIZE = "vit_large_patch16_224", 224
BATCH, WARM_UP, STEPS = 128, 4, 10
ADAPTED, CACHED, CHUNK = 256, 1024, 128
"""Images of a batch without labels, of one by gradient caching, and the views of that in memory at a time."""
SQUARE = 8192
GIGA, TERA = 2**30, 1e12
ATTENDED = ViewsConfig(rows=3, columns=4, overlap=0.2)
AGREE = 1e-5


def bench_gpu(progress: Progress) -> list[Figure]:
    """Training and adaptation steps, and attention across views; raises ConfigError where there is no CUDA device."""
    device = pick_device()
    if device.type != "cuda":
        raise ConfigError("bench gpu measures a CUDA device, and this machine has none", "run it on one that has")
    classifier = load_classifier(ModelConfig(backbone=BackboneConfig(source="timm", name=VIT)))
    ceiling = _product_rate(device)
    figures: list[Figure] = []
    for mode in progress.track(("full", "peft"), total=2, label="gpu"):
        figures += _training(classifier, mode, ceiling, device)
    return [*figures, *_adaptation(classifier), *_attention(device)]


TRAININGS = {"full": FullConfig, "peft": PeftConfig}


def _training(classifier: Classifier, mode: str, ceiling: float, device: torch.device) -> list[Figure]:
    """bf16 and compiled compared with fp32 and TF32, and the rate of matrix products compared with the device's."""
    fast, exact, plain = HardwareConfig(compile=True), HardwareConfig(tf32=False), HardwareConfig()
    seconds, operations = {}, 0.0
    for hardware in (fast, exact, plain):
        precision = MixedPrecisionConfig(enabled=hardware is fast)
        config = TRAININGS[mode](mixed_precision=precision, batch_size=BATCH, epochs=1)
        learner = copy.deepcopy(classifier)
        prepare(learner, config)
        if hardware is fast:
            operations = _operations(learner.to(device), device)
        module = SupervisedModule(learner, config, loss=make_loss(config.loss, (0, 1)), hardware=hardware)
        seconds[hardware] = _seconds_an_image(module, _labeled())
    name = f"{VIT}, {mode}: an image, bf16 and compiled"
    return [
        Figure(name, seconds[fast], "fp32, eager", seconds[exact]),
        Figure(name, seconds[fast], "TF32, eager", seconds[plain]),
        Figure(
            f"{VIT}, {mode}: products of a step",
            operations / seconds[fast] / TERA,
            f"bf16 matrices of {SQUARE} a side",
            ceiling,
            unit="TFLOP/s",
        ),
    ]


def _adaptation(classifier: Classifier) -> list[Figure]:
    """An image of phase 4a in a plain batch compared with a gradient-cached batch of four times the size."""
    measured = {}
    for images, chunk in ((ADAPTED, None), (ADAPTED, CHUNK), (CACHED, CHUNK)):
        config = SimCLRConfig(
            mixed_precision=MixedPrecisionConfig(enabled=True),
            batch_size=images,
            num_epochs=1,
            grad_cache_chunk=chunk,
        )
        learner = copy.deepcopy(classifier)
        prepare_backbone(learner, config)
        module = ExPLoRAModule(Student(learner, learner.width, config, n_images=images), config)
        gc.collect()  # the last trainer and its module name each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        views = torch.randint(0, 256, (images, 2, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
        try:
            seconds = _seconds_an_image(module, Repeated((views, torch.arange(images)), steps=3 + 2), warm_up=2)
            measured[images, chunk] = seconds, torch.cuda.max_memory_allocated() / GIGA
        except torch.cuda.OutOfMemoryError:
            measured[images, chunk] = torch.nan, torch.nan
    name = f"{VIT}, without labels, batch of {CACHED:,}, {CHUNK} views at once"
    ours = measured.pop((CACHED, CHUNK))
    figures = []
    for (images, chunk), baseline in measured.items():
        other = f"batch of {images}, {chunk or 'all'} at once"
        figures.append(Figure(f"{name}: an image", ours[0], other, baseline[0]))
        figures.append(Figure(f"{name}: memory", ours[1], other, baseline[1], unit="GiB"))
    return figures


def _attention(device: torch.device) -> list[Figure]:
    """Forward and backward across the views of 4,096 images: FlexAttention against SDPA, with equal results."""
    distances = torch.from_numpy(view_distances(ATTENDED)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    views = len(distances)
    q, k, v = (torch.randn(4096, 4, views, 16, device=device, generator=generator, requires_grad=True) for _ in "qkv")
    slopes = torch.rand(4, device=device, generator=generator, requires_grad=True)
    mask = torch.rand(4096, views, device=device, generator=generator) < 0.8
    mask[:, 0] = True
    torch.set_float32_matmul_precision("highest")

    def step(attend: Any) -> list[Tensor]:
        attended = attend(q, k, v, slopes, distances, mask)
        gradients = torch.autograd.grad(attended.square().mean(), (q, k, v, slopes))
        torch.cuda.synchronize()
        return [attended, *gradients]

    for one, other in zip(step(attend_flex), step(attend_sdpa), strict=True):
        torch.testing.assert_close(one, other, rtol=AGREE, atol=AGREE)
    flex, sdpa = interleaved_median(lambda: step(attend_flex), lambda: step(attend_sdpa))
    return [Figure(f"attention across {views} views of 4,096 images, FlexAttention", flex, "SDPA with a bias", sdpa)]


@dataclass(frozen=True)
class Repeated:
    """One batch, over and over."""

    batch: Batch
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch, self.steps)

    @property
    def row_labels(self) -> Sequence[int]:
        """Labels of the batch."""
        return [int(label) for label in self.batch[1]]


class Stopwatch(EpochLogger):
    """Seconds from the end of step `warm_up` to that of the last, when the device has done all of it."""

    def __init__(self, settings: Any, *, warm_up: int) -> None:
        super().__init__(settings, Silent())
        self.warm_up, self.marks = warm_up, list[float]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Mark the time of the two steps."""
        if batch_idx + 1 in (self.warm_up, trainer.num_training_batches):
            torch.cuda.synchronize()
            self.marks.append(time.perf_counter())


def _seconds_an_image(module: BaseModule, batches: Repeated, *, warm_up: int = WARM_UP) -> float:
    watch = Stopwatch(module.settings, warm_up=warm_up)
    train_module(module, batches, None, epoch_logger=watch, options=TrainerOptions(Silent()))
    started, ended = watch.marks
    return (ended - started) / ((len(batches) - warm_up) * len(batches.batch[0]))


def _labeled() -> Repeated:
    images = torch.randint(0, 256, (BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    return Repeated((images, torch.arange(BATCH) % 2), steps=WARM_UP + STEPS)


def _operations(model: Classifier, device: torch.device) -> float:
    """Floating-point operations of the products of one image's step, forward and backward, as this mode takes it."""
    images = torch.randint(0, 256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.zero_grad()
    return float(counter.get_total_flops()) / len(images)


def _product_rate(device: torch.device) -> float:
    """TFLOP/s of a bf16 matrix product."""
    left, right = torch.randn(2, SQUARE, SQUARE, device=device, dtype=torch.bfloat16)
    for _ in range(WARM_UP):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        left @ right
    torch.cuda.synchronize()
    return STEPS * 2 * SQUARE**3 / (time.perf_counter() - started) / TERA

"""Training steps in bf16 on the CPU compared with torch's autocast and with fp32; part of `bench training`."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision, Precision

from benchmarks.figures import Figure, interleaved_medians
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.device import has_fast_bf16
from streetvision.models.module import Classifier, load_classifier
from streetvision.training.precision import lightning_precision

CPU = torch.device("cpu")
BACKBONES = (
    BackboneConfig(source="embedded", name="dinov3_scenes"),
    BackboneConfig(source="timm", name="deit_tiny_patch16_224"),
)
BATCH = 16


def bench_precision(backbones: tuple[BackboneConfig, ...] = BACKBONES) -> Iterator[Figure]:
    """Two figures of each backbone; none where the CPU does not compute in bf16."""
    if not has_fast_bf16(CPU):
        return
    for backbone in backbones:
        classifier = load_classifier(ModelConfig(backbone=backbone)).train()
        ways = (lightning_precision("bf16", CPU), MixedPrecision("bf16-mixed", "cpu"), Precision())
        ours, autocast, fp32 = interleaved_medians([Step(classifier, way) for way in ways])
        label = f"{backbone.name}, a step of {BATCH} images in bf16"
        yield Figure(label, ours, "bf16 by torch's autocast", autocast)
        yield Figure(label, ours, "fp32", fp32)


class Step:
    """Forward and backward of a batch with all parameters trainable."""

    def __init__(self, classifier: Classifier, precision: Precision) -> None:
        self.classifier, self.precision = classifier, precision
        size = classifier.description.image_size
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(BATCH) % 2

    def __call__(self) -> None:
        """Take the step; no weight is updated."""
        self.classifier.zero_grad()
        with self.precision.forward_context():
            loss = F.cross_entropy(self.classifier(self.images).float(), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]

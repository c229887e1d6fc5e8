"""Adapting a backbone without labels: what learns of it, the projection, the methods, and the LightningModule.

ExPLoRA: the last blocks learn whole, all others through low-rank adapters, and the norms everywhere (Khanna et al.
2024, arXiv 2406.10973). Shapes: B images, S pixels a side, P pooled width, D width of an embedding.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from streetvision.data.datamodule import Batch
from streetvision.models.adapters import attach_adapters, last_blocks
from streetvision.models.config import AdapterConfig, HardwareConfig
from streetvision.models.module import Classifier
from streetvision.training.lightning_module import BaseModule
from streetvision.training.optim import WeightAverage
from streetvision.training.ssl.config import (
    BYOLConfig,
    BYOLSwAVConfig,
    ExPLoRAConfig,
    SimCLRConfig,
    SwAVConfig,
)
from streetvision.training.ssl.gradient_cache import GradientCache
from streetvision.training.ssl.losses import SimCLRLoss, byol_loss, gather, swav_loss


def open_backbone(classifier: Classifier, config: ExPLoRAConfig) -> int:
    """Let adapters, the last blocks and all norms of the backbone learn; returns the number of its parameters that do.

    Adapters are drawn from torch's global generator. Raises ConfigError when the backbone has fewer blocks.
    """
    backbone = classifier.backbone
    targets = backbone.spec.lora_targets
    opened = last_blocks(targets, config.unfreeze_blocks) if config.unfreeze_blocks else ()
    norms = {name for name, module in backbone.named_modules() if isinstance(module, nn.LayerNorm)}
    learning = tuple(f"{name}." for name in (*opened, *norms))
    learned_before = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    adapters = AdapterConfig(rank=config.rank, alpha=config.alpha, dropout=config.dropout, use_dora=config.use_dora)
    attach_adapters(backbone, adapters, exclude_blocks=opened)
    for name, parameter in backbone.named_parameters():
        if name in learned_before and name.startswith(learning):
            parameter.requires_grad_(True)
    classifier.head.requires_grad_(False)
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """(B, width) -> (B, out) through one hidden layer, LayerNorm and GELU; no statistic of the batch leaks in."""
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))


class Seen(NamedTuple):
    """What a method may read of a batch."""

    views: tuple[Tensor, Tensor]
    """Embeddings (B, D) of the first and the second views."""
    targets: tuple[Tensor, Tensor] | None
    """Where the slow copy puts them, for methods that have one."""
    kin: Tensor
    """(B,) the number of each image's group; what one group shows is not to be told apart."""


class SimCLR(nn.Module):
    """Contrast within the batch."""

    has_target: ClassVar = False

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.contrast = SimCLRLoss(config.temperature)

    def forward(self, seen: Seen) -> Tensor:
        """Loss of the embeddings (B, D) of two views."""
        loss: Tensor = self.contrast(*seen.views, seen.kin)
        return loss


class BYOL(nn.Module):
    """Each view predicts where a slow copy of the network puts the other."""

    has_target: ClassVar = True

    def __init__(self, config: BYOLConfig | BYOLSwAVConfig) -> None:
        super().__init__()
        self.predictor = projection_head(config.projection_dim, config.projection_hidden, config.projection_dim)

    def forward(self, seen: Seen) -> Tensor:
        """Loss of the embeddings (B, D) of two views, given the slow copy's."""
        assert seen.targets is not None
        pairs = zip(seen.views, reversed(seen.targets), strict=True)
        return torch.stack([byol_loss(self.predictor(view), target) for view, target in pairs]).mean()


class SwAV(nn.Module):
    """Each view predicts to which prototypes the other belongs."""

    has_target: ClassVar = False

    def __init__(self, config: SwAVConfig | BYOLSwAVConfig) -> None:
        super().__init__()
        self.temperature, self.epsilon = config.temperature, config.epsilon
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.projection_dim))

    def forward(self, seen: Seen) -> Tensor:
        """Loss of the embeddings (B, D) of two views."""
        return swav_loss(*seen.views, self.prototypes, temperature=self.temperature, epsilon=self.epsilon)


class BYOLSwAV(nn.Module):
    """The mean of the two losses, on the same embeddings."""

    has_target: ClassVar = True

    def __init__(self, config: BYOLSwAVConfig) -> None:
        super().__init__()
        self.byol, self.swav = BYOL(config), SwAV(config)

    def forward(self, seen: Seen) -> Tensor:
        """Loss of the embeddings (B, D) of two views, given the slow copy's."""
        mean: Tensor = (self.byol(seen) + self.swav(seen)) / 2
        return mean


METHODS: Mapping[str, Callable[[Any], SimCLR | BYOL | SwAV | BYOLSwAV]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "swav": SwAV,
    "byol_swav": BYOLSwAV,
}
"""phase4a.method -> the loss, with the parameters that only it has."""


class Student(nn.Module):
    """What learns without labels: the classifier's way to a feature, a projection, and the method's own parameters."""

    def __init__(self, classifier: Classifier, width: int, config: ExPLoRAConfig) -> None:
        super().__init__()
        self.classifier = classifier
        self.projection = projection_head(width, config.projection_hidden, config.projection_dim)
        self.method = METHODS[config.method](config)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> embeddings (B, D) float32."""
        embeddings: Tensor = self.projection(self.classifier.embed(images))
        return embeddings.float()


class ExPLoRAModule(BaseModule):
    """Both views of a batch through the student at once; batches are (views uint8 (B, 2, 3, S, S), kin (B,))."""

    def __init__(self, student: Student, config: ExPLoRAConfig, *, hardware: HardwareConfig | None = None) -> None:
        momentum = config.momentum if isinstance(config, BYOLConfig | BYOLSwAVConfig) else None
        target = None if momentum is None else WeightAverage(student, momentum, ramped=False)
        super().__init__(student, config, hardware=hardware, average=target)
        self.chunk = config.grad_cache_chunk if isinstance(config, SimCLRConfig) else None
        self.student = (student,)  # in a tuple, for it is `model` already
        self._cache: GradientCache | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch; raises StreetVisionError that names its files when it is not finite."""
        views, kin = batch
        if self.chunk is None:
            loss = self._loss(views, self._embedded(self.model, views), kin)
        else:
            self._cache = GradientCache(self._embed_again, views.unbind(1), at_once=self.chunk)
            loss = self._loss(views, (self._cache.embeddings[0], self._cache.embeddings[1]), kin)
        self._count_loss(loss.detach(), len(views), batch_idx)
        return loss

    def backward(self, loss: Tensor, *_: object, **__: object) -> None:
        """The loss's gradients; through the cache to the parameters where only the embeddings were kept."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self._cache is not None:
            self._cache.carry_on()
            self._cache = None

    @torch.no_grad()
    def judge(self, views: Tensor, kin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and embeddings (N, D) of both views (N, 2, 3, S, S) of rows whose groups are `kin` (N,).

        N over all processes; nothing learns from it.
        """
        first, second = embeddings = self._embedded(self.model, views)
        loss = gather(self._loss(views, embeddings, kin)[None]).mean()
        return loss, gather(first).cpu(), gather(second).cpu()

    def _loss(self, views: Tensor, embeddings: tuple[Tensor, Tensor], kin: Tensor) -> Tensor:
        loss: Tensor = self.student[0].method(Seen(embeddings, self._targets(views), kin))
        return loss

    def _targets(self, views: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where the slow copy puts the views."""
        average = self.average
        if average is None:
            return None
        with torch.no_grad():
            return self._embedded(
                lambda images: torch.func.functional_call(self.model, average.values, (images,)), views
            )

    def _embedded(self, embed: Callable[[Tensor], Tensor], views: Tensor) -> tuple[Tensor, Tensor]:
        """Both views (B, 2, 3, S, S) in one pass: (B, D) each."""
        first, second = embed(self.laid_out(views.transpose(0, 1).flatten(0, 1))).chunk(2)
        return first, second

    def _embed_again(self, images: Tensor) -> Tensor:
        """For the cache, whose second pass runs outside the step and its precision."""
        with self.trainer.precision_plugin.forward_context():
            embeddings: Tensor = self.model(self.laid_out(images))
        return embeddings

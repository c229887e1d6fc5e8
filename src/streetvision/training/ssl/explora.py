"""ExPLoRA: adapt a backbone without labels. Trainable parameters, projection head, methods and the LightningModule.

The last blocks are trained directly, all others through low-rank adapters, and norms everywhere (Khanna et al. 2024,
arXiv 2406.10973). Shapes: B images of h x w pixels, P pooled width, D width of an embedding.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.data.datamodule import Batch
from streetvision.models.adapters import attach_adapters, last_blocks
from streetvision.models.config import AdapterConfig, HardwareConfig
from streetvision.models.module import Classifier
from streetvision.training.finetune_modes import rate_scales
from streetvision.training.lightning_module import BaseModule
from streetvision.training.optim import ExponentialMovingAverage
from streetvision.training.ssl.anchor import Anchor
from streetvision.training.ssl.config import (
    BYOLConfig,
    BYOLSwAVConfig,
    DIETConfig,
    ExPLoRAConfig,
    GroupConfig,
    SimCLRConfig,
    SwAVConfig,
)
from streetvision.training.ssl.gradient_cache import GradientCache
from streetvision.training.ssl.losses import SimCLRLoss, byol_loss, gather, group_prototype_loss, swav_loss


def prepare_backbone(classifier: Classifier, config: ExPLoRAConfig) -> int:
    """Attach adapters, mark the last blocks and all norms as trainable, and freeze everything else.

    Adapters are drawn from torch's global generator.

    Returns:
        How many numbers of the backbone are trained.

    Raises:
        ConfigError: The backbone has fewer blocks than configured.
    """
    backbone = classifier.backbone
    blocks = last_blocks(backbone.spec.lora_targets, config.unfreeze_blocks) if config.unfreeze_blocks else ()
    norms = {name for name, module in backbone.named_modules() if isinstance(module, nn.LayerNorm)}
    trained = tuple(f"{name}." for name in (*blocks, *norms))
    # A parameter that the backbone itself keeps fixed (a mask token) stays fixed.
    trainable_before = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    adapters = AdapterConfig(rank=config.rank, alpha=config.alpha, dropout=config.dropout, use_dora=config.use_dora)
    attach_adapters(backbone, adapters, exclude_blocks=blocks)
    for name, parameter in backbone.named_parameters():
        if name in trainable_before and name.startswith(trained):
            parameter.requires_grad_(True)
    classifier.head.requires_grad_(False)
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build a network (B, width) -> (B, out) with one hidden layer; LayerNorm, so that rows stay independent."""
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))


CPU_CHUNK = 32
"""Views per forward pass on a CPU: the activations of more do not fit its caches."""


class TwoViewEmbeddings(NamedTuple):
    """Input of the methods: embeddings of a batch."""

    views: tuple[Tensor, Tensor]
    """Embeddings (B, D) of the first and the second views."""
    targets: tuple[Tensor, Tensor] | None
    """Embeddings (B, D) by the momentum target, for methods that have one."""
    group_ids: Tensor
    """(B,) integers; images with the same id are not negatives of each other."""


class Method(nn.Module):
    """The loss of a self-supervised method, with its own parameters.

    Args:
        config: Settings of phase 4a.
        n_images: Number of different images in training.
    """

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        raise NotImplementedError

    def held_out_loss(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss of images that are not trained on."""
        loss: Tensor = self(embeddings)
        return loss


class SimCLR(Method):
    """Contrast within the batch."""

    def __init__(self, config: SimCLRConfig, n_images: int) -> None:  # noqa: ARG002
        super().__init__()
        self.contrast = SimCLRLoss(config.temperature)

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        loss: Tensor = self.contrast(*embeddings.views, embeddings.group_ids)
        return loss


class BYOL(Method):
    """Prediction, from each view, of the momentum target's embedding of the other view."""

    def __init__(self, config: BYOLConfig | BYOLSwAVConfig, n_images: int) -> None:  # noqa: ARG002
        super().__init__()
        self.predictor = projection_head(config.projection_dim, config.projection_hidden, config.projection_dim)

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        assert embeddings.targets is not None
        pairs = zip(embeddings.views, reversed(embeddings.targets), strict=True)
        return torch.stack([byol_loss(self.predictor(view), target) for view, target in pairs]).mean()


class SwAV(Method):
    """Prediction, from each view, of the other view's prototype code."""

    def __init__(self, config: SwAVConfig | BYOLSwAVConfig, n_images: int) -> None:  # noqa: ARG002
        super().__init__()
        self.temperature, self.epsilon = config.temperature, config.epsilon
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.projection_dim))

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        return swav_loss(*embeddings.views, self.prototypes, temperature=self.temperature, epsilon=self.epsilon)


class BYOLSwAV(Method):
    """The mean of the losses of BYOL and SwAV, on the same embeddings."""

    def __init__(self, config: BYOLSwAVConfig, n_images: int) -> None:
        super().__init__()
        self.byol, self.swav = BYOL(config, n_images), SwAV(config, n_images)

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        mean: Tensor = (self.byol(embeddings) + self.swav(embeddings)) / 2
        return mean


class GroupPrototypes(Method):
    """Recognition, from each view, of the prototype of the image's group."""

    def __init__(self, config: GroupConfig, n_images: int) -> None:  # noqa: ARG002
        super().__init__()
        self.temperature = config.temperature

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        return group_prototype_loss(*embeddings.views, embeddings.group_ids, temperature=self.temperature)


class DIET(Method):
    """Recognition, from each view, of its image among all that are trained on. The group ids are numbers of images.

    References:
        Rodas et al. 2025, arXiv 2509.06990 (DIET-CP).
    """

    def __init__(self, config: DIETConfig, n_images: int) -> None:
        super().__init__()
        self.classify = nn.Linear(config.projection_dim, n_images)
        self.label_smoothing = config.label_smoothing
        self.held_out = SimCLRLoss()

    def forward(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return the loss as a scalar."""
        losses = [
            F.cross_entropy(self.classify(view), embeddings.group_ids, label_smoothing=self.label_smoothing)
            for view in embeddings.views
        ]
        return torch.stack(losses).mean()

    def held_out_loss(self, embeddings: TwoViewEmbeddings) -> Tensor:
        """Return SimCLR's loss: images that are not trained on have no class."""
        loss: Tensor = self.held_out(*embeddings.views, embeddings.group_ids)
        return loss


METHODS: Mapping[str, Callable[[Any, int], Method]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "swav": SwAV,
    "byol_swav": BYOLSwAV,
    "group": GroupPrototypes,
    "diet": DIET,
}
"""phase4a.method -> the loss, with its own parameters."""


class Student(nn.Module):
    """The network that phase 4a trains: the classifier up to its features, a projection head, and the method.

    Args:
        classifier: Its backbone is adapted; its head is not used.
        width: P.
        config: Settings of phase 4a.
        n_images: Number of different images in training.
    """

    def __init__(self, classifier: Classifier, width: int, config: ExPLoRAConfig, *, n_images: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.projection = projection_head(width, config.projection_hidden, config.projection_dim)
        self.method = METHODS[config.method](config, n_images)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, h, w), to embeddings (B, D) float32."""
        return self.project(self.classifier.embed(images))

    def project(self, features: Tensor) -> Tensor:
        """Map features (B, P) to embeddings (B, D) float32."""
        embeddings: Tensor = self.projection(features)
        return embeddings.float()


class ExPLoRAModule(BaseModule):
    """Trains a student; batches are (views uint8 (B, 2, 3, h, w), group ids (B,)).

    Args:
        student: The network.
        config: Settings of phase 4a.
        hardware: Devices and memory; the defaults if None.
        anchor: Keeps the features of unchanged images near those of the original backbone; None: nothing does.
    """

    section = "phase4a"

    def __init__(
        self,
        student: Student,
        config: ExPLoRAConfig,
        *,
        hardware: HardwareConfig | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        scales = {name: config.head_learning_rate / config.learning_rate for name, _ in student.named_parameters()}
        for name, scale in rate_scales(student.classifier, config.layer_decay).items():
            scales[f"classifier.{name}"] = scale
        super().__init__(student, config, hardware=hardware, scales=scales)
        self.momentum = config.momentum if isinstance(config, BYOLConfig | BYOLSwAVConfig) else None
        self.chunk_size = config.grad_cache_chunk if isinstance(config, SimCLRConfig) else None
        self.student = (student,)  # in a tuple, because it is registered as `model` already
        self.anchor, self.anchor_weight = anchor, config.anchor_weight
        self._cache: GradientCache | None = None
        self.restart_target()

    def restart_target(self) -> None:
        """Let the momentum target, of a method that has one, start from the student as it is now."""
        if self.momentum is not None:
            self.ema = ExponentialMovingAverage(self.student[0], self.momentum, ramped=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch; raises StreetVisionError if it is not finite."""
        views, group_ids = batch
        if self.chunk_size is None:
            embeddings = self._embed_views(self.model, views)
        else:
            self._cache = GradientCache(self._embed_chunk, views.unbind(1), chunk_size=self.chunk_size)
            embeddings = (self._cache.embeddings[0], self._cache.embeddings[1])
        loss: Tensor = self.student[0].method(self._with_targets(views, embeddings, group_ids))
        self.add_train_loss(loss.detach(), len(views), batch_idx)
        if self.anchor is not None:
            distance = self.anchor.distance(
                self.student[0].classifier,
                n=len(views),
                step=(self.current_epoch, batch_idx),
                rank_and_world_size=(self.global_rank, self.trainer.world_size),
            )
            self.add_total("anchor", torch.stack([distance.detach(), distance.new_ones(())]))
            loss = loss + self.anchor_weight * distance
        return loss

    def pop_anchor_distance(self) -> float:
        """Return the mean cosine distance of the epoch over all processes, and reset its total; there is an anchor."""
        total, count = self.pop_total("anchor")
        return total / count

    def backward(self, loss: Tensor, *_: object, **__: object) -> None:
        """Compute the gradients of the parameters, through the gradient cache if it is in use."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self._cache is not None:
            self._cache.backward()
            self._cache = None

    @torch.no_grad()
    def evaluate(self, views: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss and the embeddings of a batch over all processes.

        Args:
            views: uint8 (N, 2, 3, h, w).
            group_ids: Integers (N,).

        Returns:
            The mean loss, and the embeddings (NW, D) of the first and the second views, on the CPU.
        """
        first, second = embeddings = self._embed_views(self.model, views)
        loss = self.student[0].method.held_out_loss(self._with_targets(views, embeddings, group_ids))
        return gather(loss[None]).mean(), gather(first).cpu(), gather(second).cpu()

    def _with_targets(self, views: Tensor, embeddings: tuple[Tensor, Tensor], group_ids: Tensor) -> TwoViewEmbeddings:
        targets, ema = None, self.ema
        if ema is not None:
            with torch.no_grad():
                targets = self._embed_views(
                    lambda images: torch.func.functional_call(self.model, ema.tensors, (images,)), views
                )
        return TwoViewEmbeddings(embeddings, targets, group_ids)

    def _embed_views(self, embed: Callable[[Tensor], Tensor], views: Tensor) -> tuple[Tensor, Tensor]:
        """Embed both views (B, 2, 3, h, w): (B, D) each."""
        images = self.to_memory_format(views.transpose(0, 1).flatten(0, 1))
        parts = torch.split(images, CPU_CHUNK if images.device.type == "cpu" else len(images))
        first, second = torch.cat([embed(part) for part in parts]).chunk(2)
        return first, second

    def _embed_chunk(self, images: Tensor) -> Tensor:
        """Embed a chunk for the gradient cache, whose backward pass is outside the precision context of the step."""
        with self.trainer.precision_plugin.forward_context():
            embeddings: Tensor = self.model(self.to_memory_format(images))
        return embeddings

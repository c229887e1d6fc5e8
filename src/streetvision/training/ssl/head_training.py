"""Trains the projection head and the method's own parameters alone, before phase 4a changes the backbone."""

import math
from collections.abc import Sequence
from itertools import islice

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.training.optim import make_adamw
from streetvision.training.ssl.config import ExPLoRAConfig
from streetvision.training.ssl.explora import ExPLoRAModule, Student, TwoViewEmbeddings

EPOCH_SHARE, MAX_BATCHES = 0.25, 64
"""The features of this share of the first epoch's batches are computed, of at least two and of at most so many."""
HELD_OUT_SHARE = 0.25
"""Share of these batches on which the loss is measured; the heads are trained on the others."""
MAX_PASSES = 50
"""Passes over these features, at most."""
WINDOW, MIN_IMPROVEMENT = 5, 0.02
"""The loss is flat when its mean over a window of passes is not lower by this share than that of the window before."""


class HeadTraining(Callback):
    """Trains projection head, predictor and prototypes until their held-out loss is flat, with the backbone frozen.

    The backbone's features of the first batches of views are computed once. So the cost is at most a quarter of the
    forward passes of an epoch, or two batches. A resumed run has the trained heads in its checkpoint.

    References:
        Head first, then the backbone: Kumar et al., arXiv 2202.10054.
    """

    def __init__(self, config: ExPLoRAConfig) -> None:
        self.config = config
        self.losses: tuple[float, ...] = ()
        """Held-out loss after each pass; empty in a resumed run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train the heads before the first step."""
        assert isinstance(pl_module, ExPLoRAModule)
        if trainer.global_step > 0:
            return
        loader = trainer.train_dataloader
        assert loader is not None
        count = min(MAX_BATCHES, max(2, round(EPOCH_SHARE * len(loader))))
        batches = iter(loader)
        features = [self._features(pl_module, *batch) for batch in islice(batches, count)]
        batches.close()
        loader.resume(epoch=0, skip=0)
        self.losses = train_heads(pl_module.student[0], features, self.config)
        pl_module.restart_target()
        pl_module.on_fit_start()  # moves the target to the device

    def _features(self, module: ExPLoRAModule, views: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features (2B, P) of the first and then of the second views, and group ids (B,)."""
        images = views.to(module.device).transpose(0, 1).flatten(0, 1)
        embed = module.student[0].classifier.embed
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            chunks = torch.split(images, module.chunk_size or len(images))
            parts = [embed(module.to_memory_format(chunk)) for chunk in chunks]
        return torch.cat(parts).float(), group_ids.to(module.device)


def train_heads(student: Student, batches: Sequence[tuple[Tensor, Tensor]], config: ExPLoRAConfig) -> tuple[float, ...]:
    """Train projection head and method on features; the weights with the lowest held-out loss are kept.

    A quarter of the batches is held out, at least one; a single batch is trained on and measured. A momentum target is
    the untrained projection head, which stays as it is.

    Args:
        student: Its backbone does not change.
        batches: (features (2B, P) of the first and then of the second views, group ids (B,)).
        config: Settings of phase 4a.

    Returns:
        The held-out loss after each pass, over all processes.

    Raises:
        StreetVisionError: A held-out loss is not finite.
    """
    with torch.no_grad():
        targets = [student.project(features).chunk(2) for features, _ in batches]

    def embedded(number: int) -> TwoViewEmbeddings:
        (features, group_ids), (first, second) = batches[number], targets[number]
        own_first, own_second = student.project(features).chunk(2)
        return TwoViewEmbeddings((own_first, own_second), (first, second), group_ids)

    n_held_out = max(1, round(HELD_OUT_SHARE * len(batches)))
    held_out = range(len(batches) - n_held_out, len(batches))
    heads = nn.ModuleList([student.projection, student.method])
    optimizer = make_adamw(heads, learning_rate=config.head_learning_rate, weight_decay=config.weight_decay)
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    while len(losses) < MAX_PASSES and not is_flat(losses):
        for number in range(max(1, len(batches) - n_held_out)):
            loss = student.method(embedded(number))
            optimizer.zero_grad()
            loss.backward()
            for parameter in heads.parameters():
                _average_over_processes(parameter.grad)
            optimizer.step()
        with torch.no_grad():
            mean = torch.stack([student.method.held_out_loss(embedded(number)) for number in held_out]).mean()
        _average_over_processes(mean)
        losses.append(float(mean))
        if not math.isfinite(losses[-1]):
            raise StreetVisionError(
                f"the loss of the heads is {losses[-1]} after pass {len(losses)}", "lower phase4a.head_learning_rate"
            )
        if losses[-1] == min(losses):
            best = {name: value.clone() for name, value in heads.state_dict().items()}
    heads.load_state_dict(best)
    return tuple(losses)


def is_flat(losses: Sequence[float]) -> bool:
    """Return whether the mean of the last WINDOW losses is less than MIN_IMPROVEMENT below that of the ones before."""
    if len(losses) < 2 * WINDOW:
        return False
    before, after = sum(losses[-2 * WINDOW : -WINDOW]), sum(losses[-WINDOW:])
    return not before - after > MIN_IMPROVEMENT * abs(before)


def _average_over_processes(value: Tensor | None) -> None:
    if value is not None and dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()

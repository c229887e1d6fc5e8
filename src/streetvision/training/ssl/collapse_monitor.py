"""Watches an adaptation without labels: after each epoch, whether the embeddings still tell images apart."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import ImageLoader
from streetvision.eval.knn import knn_mcc
from streetvision.training.lightning_module import EpochLogger, EpochRow
from streetvision.training.ssl.config import ExPLoRAConfig
from streetvision.training.ssl.explora import ExPLoRAModule
from streetvision.training.ssl.losses import alignment, effective_rank, uniformity

COLLAPSED_UNIFORMITY = -0.002
"""Above it the embeddings are one point: their mean cosine is over 0.9995. BYOL came to -0.019, and went back."""
COLLAPSED_RANK = 1.5
"""Below it they lie on one line."""


class CollapseMonitor(EpochLogger):
    """A row before training and one after each epoch; raises StreetVisionError when the embeddings have collapsed.

    `select` gives pairs of views of VAL_SELECT and their kin, the same each time; `probe` plain images of TRAIN and
    their labels, whose `groups` are known. Nothing is chosen by what they show.
    """

    label = "adapt"

    def __init__(
        self,
        config: ExPLoRAConfig,
        progress: Progress,
        *,
        select: ImageLoader,
        probe: ImageLoader,
        groups: Sequence[str],
        sinks: Sequence[Callable[[EpochRow], None]] = (),
    ) -> None:
        super().__init__(config, progress, sinks)
        self.select, self.probe, self.groups = select, probe, groups

    def news(self) -> str:
        """The loss on VAL_SELECT."""
        return f"VAL_SELECT loss {self.history[-1]['select_loss']:.3f}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once before anything has moved."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, ExPLoRAModule)
        if not self.history:
            self.write_row(trainer, {"epoch": 0, "train_loss": float("nan"), **self.look(pl_module)})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row; stop where there is nothing left to learn from."""
        assert isinstance(pl_module, ExPLoRAModule)
        epoch, loss = trainer.current_epoch + 1, pl_module.take_train_loss()
        self.write_row(trainer, {"epoch": epoch, "train_loss": loss, **self.look(pl_module)})
        row = self.history[-1]
        if row["uniformity"] > COLLAPSED_UNIFORMITY or row["effective_rank"] < COLLAPSED_RANK:
            raise StreetVisionError(
                f"the embeddings have collapsed in epoch {epoch}: every image has nearly the same one "
                f"(effective rank {row['effective_rank']:.1f}, uniformity {row['uniformity']:.3f})",
                "lower phase4a.learning_rate, give larger batches, or take phase4a.method=simclr",
            )

    def look(self, module: ExPLoRAModule) -> EpochRow:
        """The loss without labels on VAL_SELECT, the spread of its embeddings, and what neighbours in TRAIN say."""
        with _at_rest(module):
            loss, first, second = self._over_select(module)
            features, labels = self._over_probe(module)
        return {
            "select_loss": loss,
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "effective_rank": effective_rank(first),
            "knn_mcc": knn_mcc(features.numpy(), labels.numpy(), self.groups),
        }

    def _over_select(self, module: ExPLoRAModule) -> tuple[float, Tensor, Tensor]:
        self.select.resume(epoch=0, skip=0)  # the same views each time
        losses, sizes, pairs = [], [], []
        for views, kin in self.select:
            loss, first, second = module.judge(views.to(module.device), kin.to(module.device))
            losses.append(float(loss))
            sizes.append(len(first))
            pairs.append((first, second))
        joined = [torch.cat([pair[side] for pair in pairs]) for side in (0, 1)]
        return float(np.average(losses, weights=sizes)), joined[0], joined[1]

    def _over_probe(self, module: ExPLoRAModule) -> tuple[Tensor, Tensor]:
        embed = module.student[0].classifier.embed
        self.probe.resume(epoch=0, skip=0)
        batches: Iterable[tuple[Tensor, Tensor]] = [
            (embed(images.to(module.device)).float().cpu(), labels) for images, labels in self.probe
        ]
        features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return features, labels


@contextmanager
def _at_rest(module: ExPLoRAModule) -> Iterator[None]:
    """In eval mode, without gradients, and with the random state as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
    for part, training in modes:
        part.training = training  # train() would reach its children

"""Measures the embeddings after each epoch of phase 4a, and stops the training if they have collapsed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import ImageLoader
from streetvision.eval.embeddings import knn_mcc
from streetvision.training.lightning_module import EpochLogger, EpochRow
from streetvision.training.ssl.config import ExPLoRAConfig
from streetvision.training.ssl.explora import ExPLoRAModule
from streetvision.training.ssl.losses import alignment, effective_rank, uniformity

MAX_UNIFORMITY = -0.002
"""Above it the embeddings are one point: their mean cosine is over 0.9995. A BYOL run that recovered reached -0.019."""
MIN_EFFECTIVE_RANK = 1.5
"""Below it the embeddings are on one line."""
FEWEST_RANKED_IMAGES = 4
"""Images from which the effective rank is checked: around their mean, N embeddings have a rank of N - 1 at most."""


class CollapseMonitor(EpochLogger):
    """Logs a row before training and after each epoch; raises StreetVisionError if the embeddings have collapsed.

    The measures select nothing.

    Args:
        config: Settings of phase 4a.
        progress: Shows the progress bar.
        select: Loader of (two views, group ids) of VAL_SELECT; the views are the same in each epoch.
        probe: Loader of (plain images, labels) of TRAIN, for the k-NN MCC.
        groups: Group of each row of `probe`; neighbors of the same group do not count.
        loggers: Lightning loggers that receive every row.
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
        loggers: Sequence[Logger] = (),
    ) -> None:
        super().__init__(config, progress, loggers)
        self.select, self.probe, self.groups = select, probe, groups
        self.n_images = 0

    def status(self) -> str:
        """Return the loss on VAL_SELECT."""
        return f"VAL_SELECT loss {self.history[-1]['select_loss']:.3f}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the measures before the first step as epoch 0."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, ExPLoRAModule)
        if not self.history:
            row: EpochRow = {"epoch": 0, "train_loss": float("nan"), **self.measure(pl_module)}
            self.log_epoch(trainer, row if pl_module.anchor is None else {**row, "anchor_distance": 0.0})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch; raises StreetVisionError if the embeddings have collapsed."""
        assert isinstance(pl_module, ExPLoRAModule)
        epoch, loss = trainer.current_epoch + 1, pl_module.pop_train_loss()
        measured: EpochRow = {"epoch": epoch, "train_loss": loss, **self.measure(pl_module)}
        if pl_module.anchor is not None:
            measured["anchor_distance"] = pl_module.pop_anchor_distance()
        self.log_epoch(trainer, measured)
        row = self.history[-1]
        on_a_line = row["effective_rank"] < MIN_EFFECTIVE_RANK and self.n_images >= FEWEST_RANKED_IMAGES
        if row["uniformity"] > MAX_UNIFORMITY or on_a_line:
            raise StreetVisionError(
                f"the embeddings have collapsed in epoch {epoch}: every image has nearly the same one "
                f"(effective rank {row['effective_rank']:.1f}, uniformity {row['uniformity']:.3f})",
                "lower phase4a.learning_rate, increase phase4a.batch_size, or set phase4a.method=simclr",
            )

    def measure(self, module: ExPLoRAModule) -> EpochRow:
        """Return the loss and the spread of the embeddings on VAL_SELECT, and the k-NN MCC on TRAIN."""
        with _evaluation_mode(module):
            loss, first, second = self._evaluate_select(module)
            features, labels = self._probe_features(module)
        self.n_images = len(first)
        return {
            "select_loss": loss,
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "effective_rank": effective_rank(first),
            "knn_mcc": knn_mcc(features.numpy(), labels.numpy(), self.groups),
        }

    def _evaluate_select(self, module: ExPLoRAModule) -> tuple[float, Tensor, Tensor]:
        self.select.resume(epoch=0, skip=0)  # the same views in each epoch
        losses, first_views, second_views = [], [], []
        for views, group_ids in self.select:
            loss, first, second = module.evaluate(views.to(module.device), group_ids.to(module.device))
            losses.append(float(loss))
            first_views.append(first)
            second_views.append(second)
        mean_loss = np.average(losses, weights=[len(first) for first in first_views])
        return float(mean_loss), torch.cat(first_views), torch.cat(second_views)

    def _probe_features(self, module: ExPLoRAModule) -> tuple[Tensor, Tensor]:
        embed = module.student[0].classifier.embed
        self.probe.resume(epoch=0, skip=0)
        features, labels = [], []
        for images, batch_labels in self.probe:
            features.append(embed(images.to(module.device)).float().cpu())
            labels.append(batch_labels)
        return torch.cat(features), torch.cat(labels)


@contextmanager
def _evaluation_mode(module: ExPLoRAModule) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes and random state are as before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
    for part, training in modes:
        part.training = training  # train() would change the children as well

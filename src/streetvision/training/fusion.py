"""Fits the fusion of views on what a frozen backbone and head made of them; the rest of the model is never touched.

Legend: N images, V views, P width of a view's features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.models.fused import FusedClassifier
from streetvision.models.fusion import TrainableCVFM
from streetvision.training.callbacks import State, cpu_state
from streetvision.training.config import CvfmTrainedConfig
from streetvision.training.features import SeenViews
from streetvision.training.lightning_module import EpochRow
from streetvision.training.optim import make_adamw

JUDGED_AT_ONCE = 1024
"""Images whose views are fused together when nothing is trained."""


@dataclass(frozen=True)
class FusionFit:
    """What fitting the fusion leaves behind."""

    best: State
    """The fusion's weights that VAL_SELECT prefers: the highest MCC, then the lowest NLL."""
    history: tuple[EpochRow, ...]
    """One row an epoch; epoch 0 is the untrained fusion, which is the mean of the logits."""
    best_epoch: int

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch]


def fit_fusion(
    model: FusedClassifier, train: SeenViews, select: SeenViews, *, config: CvfmTrainedConfig, progress: Progress
) -> FusionFit:
    """Fit `model.fusion` on `train`, choose an epoch on `select`; `model` ends with what was chosen.

    Raises StreetVisionError when the loss is not finite.
    """
    fusion = model.fusion
    assert isinstance(fusion, TrainableCVFM)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_adamw(fusion, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    with torch.no_grad():
        at_first = fusion_loss(model.eval(), train, reconstruction=config.reconstruction_weight).item()
    history: list[EpochRow] = [{"epoch": 0, "train_loss": at_first, **judge(model, select)}]
    states = [cpu_state(fusion)]
    for epoch in progress.track(range(1, config.epochs + 1), total=config.epochs, label="fuse"):
        fusion.train()
        total = 0.0
        for rows in torch.split(torch.randperm(len(train.labels), generator=generator), config.batch_size):
            optimizer.zero_grad()
            loss = fusion_loss(model, train.rows(rows), reconstruction=config.reconstruction_weight)
            if not torch.isfinite(loss):
                raise StreetVisionError(f"the loss is {loss.item()} at epoch {epoch}", "lower phase4c.learning_rate")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(rows)
        history.append({"epoch": epoch, "train_loss": total / len(train.labels), **judge(model, select)})
        states.append(cpu_state(fusion))
    best = max(range(len(history)), key=lambda i: (history[i]["val_select_mcc"], -history[i]["val_select_nll"]))
    fusion.load_state_dict(states[best])
    fusion.eval()
    return FusionFit(best=states[best], history=tuple(history), best_epoch=best)


def fusion_loss(model: FusedClassifier, batch: SeenViews, *, reconstruction: float) -> Tensor:
    """Cross-entropy of the fused logits plus the weighted reconstruction; no gradient reaches the head."""
    fusion = model.fusion
    assert isinstance(fusion, TrainableCVFM)
    with torch.no_grad():
        logits = model.classifier.head(batch.features)
    fused = fusion(batch.features, logits, batch.mask, batch.content)
    told = fusion.reconstruction_loss(fused.latent, batch.features, batch.mask)
    return F.cross_entropy(fused.logits, batch.labels) + reconstruction * told


@torch.no_grad()
def fused_logits(model: FusedClassifier, seen: SeenViews) -> Tensor:
    """Fused logits (N, C) of views whose features are known."""
    model.eval()
    parts = (seen.rows(rows) for rows in torch.split(torch.arange(len(seen.labels)), JUDGED_AT_ONCE))
    return torch.cat([model.fuse(part.features, part.mask, part.content) for part in parts])


def judge(model: FusedClassifier, select: SeenViews) -> dict[str, float]:
    """VAL_SELECT's MCC, of the class with the larger logit, and NLL."""
    logits = fused_logits(model, select)
    nll = F.cross_entropy(logits, select.labels).item()
    return {"val_select_mcc": argmax_mcc(logits, select.labels), "val_select_nll": nll}


def argmax_mcc(logits: Tensor, labels: Tensor) -> float:
    """MCC of the class with the larger logit (N, C)."""
    return float(mcc(confusion_counts(labels.numpy(), logits.argmax(dim=1).numpy() == 1)))

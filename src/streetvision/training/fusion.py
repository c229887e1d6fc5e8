"""Train the fusion of views on cached features; backbone and head do not change.

Shapes: N images, V views, C classes, P width of a view's features.
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
from streetvision.training.callbacks import State, cpu_state_dict
from streetvision.training.config import CvfmTrainedConfig
from streetvision.training.features import ViewFeatures
from streetvision.training.lightning_module import EpochRow
from streetvision.training.optim import make_adamw

EVALUATION_BATCH = 128
"""Images per batch where no gradients are computed."""


@dataclass(frozen=True)
class FusionFit:
    """Result of training a fusion."""

    best: State
    """Weights of the fusion at the epoch with the lowest NLL on VAL_SELECT."""
    history: tuple[EpochRow, ...]
    """One row per epoch; epoch 0 is the untrained fusion, which is the single view."""
    best_epoch: int

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch]


def fit_fusion(
    model: FusedClassifier,
    train: ViewFeatures,
    select: ViewFeatures | None,
    *,
    config: CvfmTrainedConfig,
    progress: Progress,
    stop_after: int | None = None,
) -> FusionFit:
    """Train `model.fusion`.

    Args:
        model: Its fusion is trained in place, and ends with the weights of the best epoch.
        train: Views of TRAIN.
        select: Views of VAL_SELECT, which select the epoch; None if, and only if, `stop_after` is set.
        config: Optimizer and weight of the reconstruction.
        progress: Shows a progress bar.
        stop_after: Number of epochs to train without a selection; 0: the untrained fusion.

    Raises:
        StreetVisionError: A loss is not finite.
    """
    fusion = model.fusion
    assert isinstance(fusion, TrainableCVFM)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_adamw(fusion, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    with torch.no_grad():
        initial_loss = fusion_loss(model.eval(), train, reconstruction_weight=config.reconstruction_weight).item()
    metrics = {} if select is None else evaluate_fusion(model, select)
    history: list[EpochRow] = [{"epoch": 0, "train_loss": initial_loss, **metrics}]
    states = [cpu_state_dict(fusion)]
    epochs = config.epochs if stop_after is None else stop_after
    for epoch in progress.track(range(1, epochs + 1), total=epochs, label="fuse"):
        fusion.train()
        total = 0.0
        for rows in torch.split(torch.randperm(len(train.labels), generator=generator), config.batch_size):
            optimizer.zero_grad()
            loss = fusion_loss(model, train.select(rows), reconstruction_weight=config.reconstruction_weight)
            if not torch.isfinite(loss):
                raise StreetVisionError(f"the loss is {loss.item()} at epoch {epoch}", "lower phase4c.learning_rate")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(rows)
        metrics = {} if select is None else evaluate_fusion(model, select)
        history.append({"epoch": epoch, "train_loss": total / len(train.labels), **metrics})
        states.append(cpu_state_dict(fusion))
    best = epochs
    if select is not None:
        best = min(range(len(history)), key=lambda i: history[i]["val_select_nll"])
    fusion.load_state_dict(states[best])
    fusion.eval()
    return FusionFit(best=states[best], history=tuple(history), best_epoch=best)


def fusion_loss(model: FusedClassifier, batch: ViewFeatures, *, reconstruction_weight: float) -> Tensor:
    """Return the cross-entropy of the fused logits plus the weighted reconstruction loss of the features."""
    fusion = model.fusion
    assert isinstance(fusion, TrainableCVFM)
    with torch.no_grad():
        logits = model.classifier.head(batch.features)
    fused = fusion(batch.features, logits, batch.mask, batch.content)
    reconstruction = fusion.reconstruction_loss(fused.latent, batch.features, batch.mask)
    return F.cross_entropy(fused.logits, batch.labels) + reconstruction_weight * reconstruction


@torch.no_grad()
def fused_logits(model: FusedClassifier, views: ViewFeatures) -> Tensor:
    """Return the fused logits (N, C) of cached views."""
    model.eval()
    batches = (views.select(rows) for rows in torch.split(torch.arange(len(views.labels)), EVALUATION_BATCH))
    return torch.cat([model.fuse(batch.embedded) for batch in batches])


def evaluate_fusion(model: FusedClassifier, select: ViewFeatures) -> dict[str, float]:
    """Return MCC, at the larger logit, and NLL on VAL_SELECT."""
    logits = fused_logits(model, select)
    nll = F.cross_entropy(logits, select.labels).item()
    return {"val_select_mcc": argmax_mcc(logits, select.labels), "val_select_nll": nll}


def argmax_mcc(logits: Tensor, labels: Tensor) -> float:
    """Return the MCC of predicting the class with the larger logit.

    Args:
        logits: (N, 2).
        labels: (N,) of 0 and 1.
    """
    return float(mcc(confusion_counts(labels.numpy(), logits.argmax(dim=1).numpy() == 1)))

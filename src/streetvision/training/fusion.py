"""Fits the fusion of views on what a frozen backbone and head made of them; the rest of the model is never touched.

Legend: N images, V views, P width of a view's features.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.models.fused import FusedClassifier, FusionDescription
from streetvision.models.fusion import FusionConfig, TrainableCVFM, TrainedFusionConfig
from streetvision.models.multi_view import ViewsConfig
from streetvision.training.features import SeenViews
from streetvision.training.keeper import State, cpu_state
from streetvision.training.learning import EpochRow
from streetvision.training.optim import make_adamw

JUDGED_AT_ONCE = 1024
"""Images whose views are fused together when nothing is trained."""


class CvfmConfig(BaseModel):
    """How an image is looked at in views, and how they are fused. A setting that the mode does not read is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["single_view", "multiview_mean", "cvfm_inference", "cvfm_trained"] = "single_view"
    """single_view: phase 1's classifier as it is; multiview_mean: the mean over views; cvfm_inference: a fusion without
    parameters; cvfm_trained: one that learns."""
    views: ViewsConfig = ViewsConfig()
    """Of all modes but single_view: how an image is cut."""
    inference: FusionConfig = FusionConfig()
    """Of cvfm_inference."""
    trained: TrainedFusionConfig = TrainedFusionConfig()
    """Of cvfm_trained: its size."""
    epochs: int = Field(default=40, ge=1)
    """Of cvfm_trained: passes over TRAIN's features."""
    batch_size: int = Field(default=64, ge=1)
    """Of cvfm_trained: images an optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of cvfm_trained: rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of cvfm_trained: of weight matrices."""
    reconstruction: float = Field(default=0.1, ge=0)
    """Of cvfm_trained: weight of the reconstruction of each view's features, beside the cross-entropy."""
    seed: int = Field(default=0, ge=0)
    """Of cvfm_trained: of the fusion's first weights and the order of rows."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, field in type(self).model_fields.items():
            modes = READ_BY.get(name, TRAINED)
            if name not in ("mode", "seed") and self.mode not in modes and getattr(self, name) != field.default:
                raise ConfigError(
                    f"phase4c.{name} is not read by phase4c.mode={self.mode}",
                    f"leave it out, or take phase4c.mode={sorted(modes)[0]}",
                )
        return self

    @property
    def description(self) -> FusionDescription:
        """What a bundle is told of the fusion."""
        assert self.mode != "single_view"
        return FusionDescription(
            mode=self.mode,
            views=self.views,
            inference=self.inference if self.mode == "cvfm_inference" else None,
            trained=self.trained if self.mode == "cvfm_trained" else None,
        )


TRAINED = frozenset({"cvfm_trained"})
READ_BY = {
    "views": frozenset({"multiview_mean", "cvfm_inference", "cvfm_trained"}),
    "inference": frozenset({"cvfm_inference"}),
}
"""Setting -> the modes that read it; those that are not listed are read by cvfm_trained alone."""


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
    model: FusedClassifier, train: SeenViews, select: SeenViews, *, config: CvfmConfig, progress: Progress
) -> FusionFit:
    """Fit `model.fusion` on `train`, choose an epoch on `select`; `model` ends with what was chosen.

    Raises StreetVisionError when the loss is not finite.
    """
    fusion = model.fusion
    assert isinstance(fusion, TrainableCVFM)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_adamw(fusion, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    with torch.no_grad():
        at_first = fusion_loss(model.eval(), train, reconstruction=config.reconstruction).item()
    history: list[EpochRow] = [{"epoch": 0, "train_loss": at_first, **judge(model, select)}]
    states = [cpu_state(fusion)]
    for epoch in progress.track(range(1, config.epochs + 1), total=config.epochs, label="fuse"):
        fusion.train()
        total = 0.0
        for rows in torch.split(torch.randperm(len(train.labels), generator=generator), config.batch_size):
            optimizer.zero_grad()
            loss = fusion_loss(model, train.rows(rows), reconstruction=config.reconstruction)
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
    counts = confusion_counts(select.labels.numpy(), logits.argmax(dim=1).numpy() == 1)
    return {"val_select_mcc": float(mcc(counts)), "val_select_nll": F.cross_entropy(logits, select.labels).item()}

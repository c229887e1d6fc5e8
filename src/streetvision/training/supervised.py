"""The supervised LightningModule: one step, one optimizer, counts over the epoch."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.data.datamodule import Batch
from streetvision.eval.counts import Counts
from streetvision.eval.metrics import mcc
from streetvision.training.config import TrainingConfig
from streetvision.training.optim import cosine_with_warmup, make_adamw


class SupervisedModule(LightningModule):
    """Fits `model`, a map from a batch of inputs to logits (B, 2), by cross-entropy."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self._sums: dict[str, Tensor] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch; raises StreetVisionError when it is not finite."""
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        if not torch.isfinite(loss):
            raise StreetVisionError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_idx + 1}",
                "lower training.learning_rate, or set training.precision=fp32",
            )
        self._add("train", torch.stack([loss.detach() * len(labels), loss.new_tensor(len(labels))]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch's confusion counts and summed cross-entropy to the epoch's."""
        inputs, labels = batch
        logits = self.model(inputs).float()
        self._add("confusion", torch.bincount(2 * labels + logits.argmax(dim=1), minlength=4))
        self._add("nll", F.cross_entropy(logits, labels, reduction="sum"))

    def take_epoch_figures(self) -> dict[str, float]:
        """The epoch's mean training loss, and VAL_SELECT's MCC and NLL from its counts and sums; starts anew."""
        total, seen = self._sums.pop("train").tolist()
        tn, fp, fn, tp = self._sums.pop("confusion").tolist()
        return {
            "train_loss": total / seen,
            "val_select_mcc": float(mcc(Counts(tp=tp, tn=tn, fp=fp, fn=fn))),
            "val_select_nll": self._sums.pop("nll").item() / (tn + fp + fn + tp),
        }

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a cosine with warm-up that moves with each optimizer step."""
        c = self.config
        optimizer = make_adamw(self.model, learning_rate=c.learning_rate, weight_decay=c.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = cosine_with_warmup(optimizer, total_steps=total, warmup_steps=round(c.warmup_share * total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

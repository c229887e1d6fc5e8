"""The LightningModule of the supervised training: the step, and the confusion counts of the validation.

Shapes: B rows; inputs are images uint8 (B, 3, h, w) or features (B, P); targets are labels (B,) or shares (B, 2).
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.data.datamodule import Batch
from streetvision.eval.counts import Counts
from streetvision.eval.metrics import mcc
from streetvision.models.config import HardwareConfig
from streetvision.models.device import uses_compiler
from streetvision.models.module import N_CLASSES, create_model_with_compile
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import BaseModule
from streetvision.training.optim import ExponentialMovingAverage

Weights = Literal["raw", "ema"]


class SupervisedModule(BaseModule):
    """Fits a classifier.

    Args:
        model: Maps a batch of inputs to logits (B, 2).
        config: Settings of phase 1.
        loss: Maps logits (B, 2) and class shares (B, 2) to the mean loss.
        hardware: Devices, memory and compiler; the defaults if None.
        scales: Parameter name -> factor of the learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        loss: nn.Module,
        hardware: HardwareConfig | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        ema = None if config.ema_decay is None else ExponentialMovingAverage(model, config.ema_decay)
        super().__init__(model, config, hardware=hardware, ema=ema, scales=scales)
        self.loss = loss
        # In a tuple, so that it is not registered as a submodule and its prefix stays out of state dicts.
        self._compiled = (create_model_with_compile(self.hardware, model),)
        self.check_compiled = uses_compiler(self.hardware)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch; raises StreetVisionError if it is not finite."""
        inputs, labels = batch
        inputs = self.to_memory_format(inputs)
        targets = labels if labels.ndim > 1 else F.one_hot(labels, N_CLASSES).float()
        loss: Tensor = self.loss(self._logits(inputs).float(), targets)
        self.add_train_loss(loss, len(labels), batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add the confusion counts and the summed cross-entropy of a batch to the totals."""
        inputs, labels = batch
        self._add_metrics("raw", self._logits(inputs), labels)
        if self.check_compiled:
            self._add_metrics("eager", self.model(inputs), labels)
        if self.ema is not None:
            logits = torch.func.functional_call(self.model, self.ema.tensors, (inputs,))
            self._add_metrics("ema", logits, labels)

    def pop_metrics(self, weights: Weights | Literal["eager"]) -> dict[str, float]:
        """Return MCC, NLL and positive rate on VAL_SELECT over all processes, and reset their totals."""
        tn, fp, fn, tp = map(int, self.pop_total(f"confusion_{weights}"))
        rows = tn + fp + fn + tp
        return {
            "mcc": float(mcc(Counts(tp=tp, tn=tn, fp=fp, fn=fn))),
            "nll": self.pop_total(f"nll_{weights}")[0] / rows,
            "positive_rate": (tp + fp) / rows,
        }

    def _logits(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs) if self.use_eager else self._compiled[0](inputs)
        return logits

    def _add_metrics(self, name: str, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()
        # 2 * label + prediction numbers the four cells of the confusion matrix.
        self.add_total(f"confusion_{name}", torch.bincount(2 * labels + logits.argmax(dim=1), minlength=4))
        self.add_total(f"nll_{name}", F.cross_entropy(logits, labels, reduction="sum"))

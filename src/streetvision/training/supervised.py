"""The supervised LightningModule: one step, and counts over the epoch.

Shapes: B rows; inputs are images uint8 (B, 3, S, S) or features (B, P); targets are labels (B,) or shares (B, 2).
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
from streetvision.models.module import N_CLASSES, create_model_with_compile
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import BaseModule
from streetvision.training.optim import WeightAverage

Weights = Literal["raw", "ema"]


class SupervisedModule(BaseModule):
    """Fits `model`, a map from a batch of inputs to logits (B, 2)."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        *,
        loss: nn.Module,
        hardware: HardwareConfig | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        super().__init__(model, config, hardware=hardware, average=average, scales=scales)
        self.config, self.loss = config, loss
        # In a tuple, so that the compiled module is no child and its prefix reaches no state dict.
        self._compiled = (create_model_with_compile(self.hardware, model),)
        self.guarding = self.hardware.compile

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch; raises StreetVisionError that names its files when it is not finite."""
        inputs, labels = batch
        inputs = self.laid_out(inputs)
        targets = labels if labels.ndim > 1 else F.one_hot(labels, N_CLASSES).float()
        loss: Tensor = self.loss(self._run(inputs).float(), targets)
        self._count_loss(loss, len(labels), batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch's confusion counts and summed cross-entropy to the epoch's."""
        inputs, labels = batch
        self._judge("raw", self._run(inputs), labels)
        if self.guarding:
            self._judge("eager", self.model(inputs), labels)
        if self.average is not None:
            logits = torch.func.functional_call(self.model, self.average.values, (inputs,))
            self._judge("ema", logits, labels)

    def pop_metrics(self, weights: Weights | Literal["eager"]) -> dict[str, float]:
        """VAL_SELECT's MCC, NLL and share called class 1, from counts and sums over all processes; starts anew."""
        tn, fp, fn, tp = map(int, self._reduced(f"confusion_{weights}"))
        total = tn + fp + fn + tp
        return {
            "mcc": float(mcc(Counts(tp=tp, tn=tn, fp=fp, fn=fn))),
            "nll": self._reduced(f"nll_{weights}")[0] / total,
            "called": (tp + fp) / total,
        }

    def _run(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs) if self.eager else self._compiled[0](inputs)
        return logits

    def _judge(self, name: str, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()
        self._add(f"confusion_{name}", torch.bincount(2 * labels + logits.argmax(dim=1), minlength=4))
        self._add(f"nll_{name}", F.cross_entropy(logits, labels, reduction="sum"))

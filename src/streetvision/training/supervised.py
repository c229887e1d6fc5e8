"""The supervised LightningModule: one step, one optimizer, counts over the epoch.

Shapes: B rows; inputs are images uint8 (B, 3, S, S) or features (B, P); targets are labels (B,) or shares (B, 2).
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.data.datamodule import Batch
from streetvision.eval.counts import Counts
from streetvision.eval.metrics import mcc
from streetvision.models.module import N_CLASSES
from streetvision.training.config import TrainingConfig
from streetvision.training.hardware import create_model_with_compile
from streetvision.training.optim import WeightAverage, cosine_with_warmup, make_adamw

Weights = Literal["raw", "ema"]
NAMED_FILES = 8
"""Files of a batch that an error names."""


class SupervisedModule(LightningModule):
    """Fits `model`, a map from a batch of inputs to logits (B, 2)."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, *, loss: nn.Module, scales: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.model, self.config, self.loss, self.scales = model, config, loss, scales
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay is not None else None
        # In a tuple, so that the compiled module is no child and its prefix reaches no state dict.
        self._compiled = (create_model_with_compile(model, config.compile),)
        self.guarding = config.compile.enabled
        self._sums: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        """The average lies where the weights do."""
        if self.average is not None:
            self.average.to(self.device)

    def on_train_epoch_start(self) -> None:
        """What does not learn stays as it is judged: dropout off, running statistics kept."""
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch; raises StreetVisionError that names its files when it is not finite."""
        inputs, labels = batch
        if self.config.hardware.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = labels if labels.ndim > 1 else F.one_hot(labels, N_CLASSES).float()
        loss: Tensor = self.loss(self._compiled[0](inputs).float(), targets)
        if not torch.isfinite(loss):
            raise StreetVisionError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_idx + 1}: "
                f"{self._files(batch_idx)}",
                "look at these files; else lower training.learning_rate, or set training.precision=fp32",
            )
        self._add("train", torch.stack([loss.detach() * len(labels), loss.new_tensor(len(labels))]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch's confusion counts and summed cross-entropy to the epoch's."""
        inputs, labels = batch
        self._judge("raw", self._compiled[0](inputs), labels)
        if self.guarding:
            self._judge("eager", self.model(inputs), labels)
        if self.average is not None:
            logits = torch.func.functional_call(self.model, self.average.values, (inputs,))
            self._judge("ema", logits, labels)

    def optimizer_step(self, *arguments: object, **options: object) -> None:
        """The optimizer's step, and the average's behind it."""
        super().optimizer_step(*arguments, **options)  # type: ignore[arg-type]
        if self.average is not None:
            self.average.update(self.model)

    def take_train_loss(self) -> float:
        """The epoch's mean training loss over all processes; starts anew."""
        total, seen = self._reduced("train")
        return total / seen

    def take_figures(self, weights: Weights | Literal["eager"]) -> dict[str, float]:
        """VAL_SELECT's MCC, NLL and share called class 1, from counts and sums over all processes; starts anew."""
        tn, fp, fn, tp = map(int, self._reduced(f"confusion_{weights}"))
        total = tn + fp + fn + tp
        return {
            "mcc": float(mcc(Counts(tp=tp, tn=tn, fp=fp, fn=fn))),
            "nll": self._reduced(f"nll_{weights}")[0] / total,
            "called": (tp + fp) / total,
        }

    def drop_compiled(self) -> None:
        """Go on without the compiled module."""
        self._compiled = (self.model,)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a cosine with warm-up that moves with each optimizer step."""
        c = self.config
        optimizer = make_adamw(
            self.model,
            learning_rate=c.learning_rate,
            weight_decay=c.weight_decay,
            scales=self.scales,
            fused=self.device.type == "cuda",
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = cosine_with_warmup(optimizer, total_steps=total, warmup_steps=round(c.warmup_share * total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def sums(self) -> dict[str, Tensor]:
        """What has been added up in the epoch so far, for a checkpoint."""
        return self._sums

    def _files(self, batch_idx: int) -> str:
        rows_of: Callable[..., list[str]] = self.trainer.train_dataloader.rows_of  # type: ignore[union-attr]
        names = rows_of(epoch=self.current_epoch, batch=batch_idx)
        return ", ".join(names[:NAMED_FILES]) + (f" and {len(names) - NAMED_FILES} more" * (len(names) > NAMED_FILES))

    def _judge(self, name: str, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()
        self._add(f"confusion_{name}", torch.bincount(2 * labels + logits.argmax(dim=1), minlength=4))
        self._add(f"nll_{name}", F.cross_entropy(logits, labels, reduction="sum"))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _reduced(self, name: str) -> list[float]:
        total = self.trainer.strategy.reduce(self._sums.pop(name), reduce_op="sum")
        assert isinstance(total, Tensor)
        return [float(value) for value in total.flatten().tolist()]

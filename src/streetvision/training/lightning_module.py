"""What all trainings share: AdamW with a cosine schedule, an average of the weights, totals of an epoch, its log."""

# ruff: noqa: ARG002 (Lightning passes its hooks more than they use)

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.models.config import HardwareConfig
from streetvision.training.config import LearningConfig
from streetvision.training.loggers import log_row
from streetvision.training.optim import ExponentialMovingAverage, cosine_with_warmup, make_adamw
from streetvision.training.sharding import shard

EpochRow = dict[str, float | int]
"""Metrics of an epoch; `epoch` is its number."""
MAX_NAMED_FILES = 8
"""How many files of a batch an error message names."""


class BaseModule(LightningModule):
    """Trains `model`; subclasses define the step.

    Metrics of an epoch come from totals over its batches and all processes, which resume checkpoints include.

    Args:
        model: The module to train.
        settings: Batches, optimizer, schedule and precision.
        hardware: Devices and memory; the defaults if None.
        ema: Average to update after each optimizer step.
        scales: Parameter name -> factor of the learning rate.
    """

    section: ClassVar[str] = "training"
    """Section of the settings, for messages."""

    def __init__(
        self,
        model: nn.Module,
        settings: LearningConfig,
        *,
        hardware: HardwareConfig | None = None,
        ema: ExponentialMovingAverage | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.scales, self.ema = model, settings, scales, ema
        self.hardware = hardware or HardwareConfig()
        self.check_compiled = False
        """Whether the compiled model is still to be compared with the eager one."""
        self.use_eager = False
        """Whether the compiled model was rejected."""
        self._totals: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        """Shard the weights if the strategy is fsdp."""
        if self.hardware.strategy == "fsdp":
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW and a cosine schedule with warm-up, updated after each optimizer step."""
        settings = self.settings
        optimizer = make_adamw(
            self.model,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            scales=self.scales,
            # Lightning cannot clip the gradients of a fused optimizer under mixed precision.
            fused=self.device.type == "cuda" and settings.gradient_clip_norm is None,
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = cosine_with_warmup(
            optimizer, total_steps=total, warmup_steps=round(settings.warmup_fraction * total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Move the average to the device of the weights."""
        if self.ema is not None:
            self.ema.to(self.device)

    def on_train_start(self) -> None:
        """Set the train mode, also when the run resumes in the middle of an epoch."""
        set_train_mode(self.model)

    def optimizer_step(self, *arguments: object, **options: object) -> None:
        """Run the optimizer step, then update the average."""
        super().optimizer_step(*arguments, **options)  # type: ignore[arg-type]
        if self.ema is not None:
            self.ema.update(self.model)

    def to_memory_format(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in the memory format of hardware.channels_last; other inputs unchanged."""
        channels_last = self.hardware.channels_last and images.ndim == 4
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def add_train_loss(self, loss: Tensor, rows: int, batch_idx: int) -> None:
        """Add the mean loss of a batch to the totals.

        Raises:
            StreetVisionError: The loss is not finite; the message names the files of the batch.
        """
        if not torch.isfinite(loss):
            raise StreetVisionError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_idx + 1}: "
                f"{self._file_names(batch_idx)}",
                f"check these files; if they are fine, lower {self.section}.learning_rate or set "
                f"{self.section}.mixed_precision.enabled=false",
            )
        self.add_total("train", torch.stack([loss.detach() * rows, loss.new_tensor(rows)]))

    def pop_train_loss(self) -> float:
        """Return the mean training loss of the epoch over all processes, and reset its total."""
        total, rows = self.pop_total("train")
        return total / rows

    def add_total(self, name: str, value: Tensor) -> None:
        """Add `value` to the total `name` of this process."""
        total = self._totals.get(name)
        # A total restored from a checkpoint is on the CPU.
        self._totals[name] = value if total is None else total.to(value.device) + value

    def pop_total(self, name: str) -> list[float]:
        """Return the total `name` over all processes, flattened, and reset it."""
        return [float(value) for value in self._sum_over_processes(self._totals.pop(name)).flatten().tolist()]

    def global_totals(self) -> dict[str, Tensor]:
        """Return the totals over all processes for a checkpoint; all processes must call this."""
        # Cloned, because the reduction may work in place.
        return {name: self._sum_over_processes(value.clone()).cpu() for name, value in self._totals.items()}

    def restore_totals(self, totals: Mapping[str, Tensor]) -> None:
        """Restore `global_totals` on rank 0; the other ranks start from zero, so that nothing counts twice."""
        self._totals = dict(totals) if self.global_rank == 0 else {}

    def _file_names(self, batch_idx: int) -> str:
        names: list[str] = self.trainer.train_dataloader.rows_of(  # type: ignore[union-attr]
            epoch=self.current_epoch, batch=batch_idx
        )
        more = len(names) - MAX_NAMED_FILES
        return ", ".join(names[:MAX_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total


def set_train_mode(model: nn.Module) -> None:
    """Set `model` to train mode, but modules without any trainable parameter to eval mode.

    Dropout and running statistics of frozen parts then work as they do in the evaluation.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


class EpochLogger(Callback):
    """Logs one row per epoch and shows a progress bar; subclasses define the content of a row.

    Args:
        settings: The settings of the training.
        progress: Shows the bar.
        loggers: Lightning loggers that receive every row. They are not passed to the Trainer, because a resumed run
            logs the rows before the interruption again.
    """

    label = "train"
    """Label of the progress bar."""

    def __init__(self, settings: LearningConfig, progress: Progress, loggers: Sequence[Logger] = ()) -> None:
        self.settings, self.progress, self.loggers = settings, progress, loggers
        self.history: list[EpochRow] = []
        self.previous_seconds = 0.0
        """Training time before the run was resumed."""
        self.images = 0
        """Images of all processes since the run was started or resumed."""
        self._bar: Iterator[int] = iter(())

    def status(self) -> str:
        """Return a short text on the last epoch for the bar; called after the first epoch."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the step where training starts, and the clock."""
        batches_done = trainer.global_step * self.settings.micro_batches
        steps = range(batches_done, int(trainer.num_training_batches) * (trainer.max_epochs or 1))
        self._start, self.images, self._note = time.perf_counter(), 0, ""
        self._bar = self.progress.track(steps, total=len(steps), label=self.label, note=lambda: self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Advance the bar."""
        self.images += len(batch[0]) * trainer.world_size
        rate = self.images / (time.perf_counter() - self._start)
        self._note = f"{rate:.0f} img/s" + (f", {self.status()}" if self.history else "")
        next(self._bar, None)

    def on_train_end(self, *_: object) -> None:
        """Close the bar, also when training stops early."""
        deque(self._bar, maxlen=0)

    def log_epoch(self, trainer: Trainer, row: EpochRow) -> None:
        """Add to `row` the learning rate of unscaled parameters and the training time; keep and publish it."""
        optimizer = trainer.optimizers[0]
        group = max(optimizer.param_groups, key=lambda group: group["initial_lr"])  # a factor may be 0
        learning_rate = optimizer.defaults["lr"] * group["lr"] / group["initial_lr"]
        row = {**row, "learning_rate": learning_rate, "seconds": round(self.seconds(), 3)}
        self.history.append(row)
        self.publish(row)

    def publish(self, row: EpochRow) -> None:
        """Send a row to the loggers."""
        log_row(self.loggers, row)

    def seconds(self) -> float:
        """Return the training time so far, including that before an interruption."""
        return self.previous_seconds + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resume checkpoint."""
        return {"history": self.history, "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a resume checkpoint, and publish its rows again."""
        self.history, self.previous_seconds = state_dict["history"], state_dict["seconds"]
        for row in self.history:
            self.publish(row)

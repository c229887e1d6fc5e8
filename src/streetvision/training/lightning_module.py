"""What every training run does alike: AdamW on a cosine, an average of the weights, sums of an epoch, a bar."""

# ruff: noqa: ARG002 (Lightning hands its hooks more than they use)

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.models.config import HardwareConfig
from streetvision.training.config import LearningConfig
from streetvision.training.optim import WeightAverage, cosine_with_warmup, make_adamw
from streetvision.training.sharding import shard

EpochRow = dict[str, float | int]
NAMED_FILES = 8
"""Files of a batch that an error names."""


class BaseModule(LightningModule):
    """Fits `model`; a child has the step. What it adds up over an epoch survives an interruption."""

    def __init__(
        self,
        model: nn.Module,
        settings: LearningConfig,
        *,
        hardware: HardwareConfig | None = None,
        average: WeightAverage | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.scales = model, settings, scales
        self.hardware = hardware or HardwareConfig()
        self.average = average
        self.guarding = False
        """Whether the compiled model is still to be judged against the eager one."""
        self.eager = False
        """Whether the compiled model has been given up."""
        self._sums: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        """Cut the weights among the processes where the strategy says so."""
        if self.hardware.strategy == "fsdp":
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """The average lies where the weights do."""
        if self.average is not None:
            self.average.to(self.device)

    def on_train_start(self) -> None:
        """What learns is in train mode from the first step, in the middle of an epoch too."""
        train_what_learns(self.model)

    def optimizer_step(self, *arguments: object, **options: object) -> None:
        """The optimizer's step, and the average's behind it."""
        super().optimizer_step(*arguments, **options)  # type: ignore[arg-type]
        if self.average is not None:
            self.average.update(self.model)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a cosine with warm-up that moves with each optimizer step."""
        c = self.settings
        optimizer = make_adamw(
            self.model,
            learning_rate=c.learning_rate,
            weight_decay=c.weight_decay,
            scales=self.scales,
            # Lightning does not clip the gradients of a fused step under mixed precision.
            fused=self.device.type == "cuda" and c.gradient_clip_norm is None,
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = cosine_with_warmup(optimizer, total_steps=total, warmup_steps=round(c.warmup_fraction * total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def take_train_loss(self) -> float:
        """The epoch's mean training loss over all processes; starts anew."""
        total, seen = self._reduced("train")
        return total / seen

    def joint_sums(self) -> dict[str, Tensor]:
        """What all processes have added up in the epoch so far, for a checkpoint; all of them take part."""
        return {name: self._joint(value.clone()).cpu() for name, value in self._sums.items()}

    def take_up_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from `joint_sums`: the first process does, and the others from nothing."""
        self._sums = dict(sums) if self.global_rank == 0 else {}

    def laid_out(self, images: Tensor) -> Tensor:
        """Images as hardware.channels_last wants them in memory."""
        wanted = self.hardware.channels_last and images.ndim == 4
        return images.contiguous(memory_format=torch.channels_last) if wanted else images

    def _count_loss(self, loss: Tensor, rows: int, batch_idx: int) -> None:
        """Add a batch's loss to the epoch's; raises StreetVisionError that names its files when it is not finite."""
        if not torch.isfinite(loss):
            raise StreetVisionError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_idx + 1}: "
                f"{self._files(batch_idx)}",
                "look at these files; else lower the learning_rate, or set mixed_precision.enabled=false",
            )
        self._add("train", torch.stack([loss.detach() * rows, loss.new_tensor(rows)]))

    def _files(self, batch_idx: int) -> str:
        rows_of: Callable[..., list[str]] = self.trainer.train_dataloader.rows_of  # type: ignore[union-attr]
        names = rows_of(epoch=self.current_epoch, batch=batch_idx)
        return ", ".join(names[:NAMED_FILES]) + (f" and {len(names) - NAMED_FILES} more" * (len(names) > NAMED_FILES))

    def _add(self, name: str, value: Tensor) -> None:
        before = self._sums.get(name)  # on the CPU where a checkpoint recorded it
        self._sums[name] = value if before is None else before.to(value.device) + value

    def _reduced(self, name: str) -> list[float]:
        return [float(value) for value in self._joint(self._sums.pop(name)).flatten().tolist()]

    def _joint(self, value: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total


def train_what_learns(model: nn.Module) -> None:
    """Put `model` in train mode, however it came, but leave a part whose parameters all stand still as it is judged.

    In that, dropout stays off and running statistics stay as they are.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


class EpochLogger(Callback):
    """One row an epoch to whoever follows the run, and a progress bar; a child says what the row holds."""

    label = "train"
    """Beside the bar."""

    def __init__(
        self, settings: LearningConfig, progress: Progress, sinks: Sequence[Callable[[EpochRow], None]] = ()
    ) -> None:
        self.settings, self.progress, self.sinks = settings, progress, sinks
        self.history: list[EpochRow] = []
        self.seconds_before = 0.0
        self._ticks: Iterator[int] = iter(())

    def news(self) -> str:
        """What the last epoch gave, for the bar; empty before the first."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar where training starts, and the clock."""
        each = int(trainer.num_training_batches)
        steps = range(trainer.global_step * self.settings.micro_batches, each * (trainer.max_epochs or 1))
        self._started, self._trained, self._note = time.perf_counter(), 0, ""
        self._ticks = self.progress.track(steps, total=len(steps), label=self.label, note=lambda: self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Move the bar."""
        self._trained += len(batch[0]) * trainer.world_size
        rate = self._trained / (time.perf_counter() - self._started)
        self._note = f"{rate:.0f} img/s" + (f", {self.news()}" if self.history else "")
        next(self._ticks, None)

    def on_train_end(self, *_: object) -> None:
        """Take the bar away, wherever it stands: patience ends a training early."""
        deque(self._ticks, maxlen=0)

    def write_row(self, trainer: Trainer, row: EpochRow) -> None:
        """End an epoch: its row, with the rate and the time so far, to the history and to every sink."""
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.history.append({**row, "learning_rate": rate, "seconds": round(self.seconds_so_far(), 3)})
        for sink in self.sinks:
            sink(self.history[-1])

    def seconds_so_far(self) -> float:
        """Time spent in training, over interruptions."""
        return self.seconds_before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint records of it."""
        return {"history": self.history, "seconds": self.seconds_so_far()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what followed the rows so far follows them again."""
        self.history, self.seconds_before = state_dict["history"], state_dict["seconds"]
        for row in self.history:
            for sink in self.sinks:
                sink(row)

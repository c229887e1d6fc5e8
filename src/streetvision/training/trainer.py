"""The Lightning Trainer: runs the epochs, keeps the state that VAL_SELECT prefers, writes one row an epoch."""

import copy
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import Batch
from streetvision.training.config import TrainingConfig
from streetvision.training.hardware import lightning_precision, pick_device
from streetvision.training.supervised import SupervisedModule

State = dict[str, Tensor]
EpochRow = dict[str, float | int]


class Batches(Sized, Iterable[Batch], Protocol):
    """Batches of (inputs, labels), the same number each time they are walked through."""


@dataclass(frozen=True)
class Fit:
    """What a training run leaves behind."""

    best: State
    """State dict of the epoch with the highest VAL_SELECT MCC; lower NLL breaks ties."""
    last: State
    """State dict of the last epoch."""
    history: tuple[EpochRow, ...]
    """One row an epoch."""
    best_epoch: int
    """Counted from 1."""

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit(model: nn.Module, batches: Batches, validation: Batches, *, config: TrainingConfig, progress: Progress) -> Fit:
    """Fit `model` on `batches` and choose an epoch on `validation`; `model` ends with the last epoch's weights."""
    device = pick_device()
    module = SupervisedModule(model, config)
    keeper = _KeepBest(progress)
    precision = lightning_precision(config.precision, device) if config.mode == "full" else "32-true"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        max_epochs=config.epochs,
        accelerator=device.type,
        devices=1,
        precision=precision,
        logger=False,
        callbacks=[keeper],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            trainer.fit(module, train_dataloaders=batches, val_dataloaders=validation)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends the process where it is interrupted
                raise KeyboardInterrupt from stop
            raise
    return keeper.result(model)


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch, and the workers of loaders."""
    seed_everything(seed, workers=True, verbose=False)


class _KeepBest(Callback):
    """Keeps the best epoch's weights and the history, and moves the progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.history: list[EpochRow] = []
        self.best: State = {}
        self.best_key = (-float("inf"), -float("inf"))
        self.best_epoch = 0
        self._ticks: Iterator[int] = iter(())
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self._ticks = self.progress.track(range(total), total=total, label="train")
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        next(self._ticks, None)

    def on_train_end(self, *_: object) -> None:
        next(self._ticks, None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        epoch, figures = trainer.current_epoch + 1, pl_module.take_epoch_figures()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seconds = round(time.perf_counter() - self._started, 3)
        self.history.append({"epoch": epoch, **figures, "learning_rate": rate, "seconds": seconds})
        key = (figures["val_select_mcc"], -figures["val_select_nll"])
        if key > self.best_key:
            self.best_key, self.best_epoch = key, epoch
            self.best = cpu_state(pl_module.model)

    def result(self, model: nn.Module) -> Fit:
        """Everything kept, once the trainer is through."""
        return Fit(best=self.best, last=cpu_state(model), history=tuple(self.history), best_epoch=self.best_epoch)


def cpu_state(module: nn.Module) -> State:
    """A copy of the module's state dict on the CPU."""
    return {name: copy.deepcopy(tensor.detach().cpu()) for name, tensor in module.state_dict().items()}

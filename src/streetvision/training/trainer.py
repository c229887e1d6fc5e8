"""Run a training with Lightning's Trainer, and resume it from a checkpoint."""

import copy
import logging
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import Batch
from streetvision.models.config import HardwareConfig
from streetvision.models.device import hardware_settings, pick_device
from streetvision.models.losses import make_loss
from streetvision.training.callbacks import (
    BestCheckpoints,
    Checkpoint,
    CheckpointLogger,
    LastCheckpoint,
    State,
    trainable_state_dict,
)
from streetvision.training.checkpoints import ResumeCheckpoint
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import BaseModule, EpochLogger, EpochRow
from streetvision.training.precision import lightning_precision
from streetvision.training.sharding import lightning_strategy
from streetvision.training.supervised import SupervisedModule, Weights


class Batches(Sized, Iterable[Batch], Protocol):
    """Batches of (inputs, labels), the same number in each pass."""

    @property
    def row_labels(self) -> Sequence[int]:
        """Labels of all rows, from which balanced class weights are computed."""
        ...


@dataclass(frozen=True)
class TrainerOptions:
    """Outputs of a training that do not affect its result: progress, loggers, checkpoints to resume from."""

    progress: Progress
    loggers: Sequence[Logger] = ()
    """They receive the row of every epoch."""
    checkpoint: Path | None = None
    """File of the checkpoints to resume from; None: no checkpoints."""
    resume_key: str = ""
    """Identifies everything that affects the result; a checkpoint with another key is not used."""


@dataclass(frozen=True)
class Fit:
    """Result of a supervised training. States hold the trainable parameters and the buffers."""

    checkpoints: tuple[Checkpoint, ...]
    """The states with the highest MCC on VAL_SELECT, best first; lower NLL breaks ties."""
    last: State
    """State after the last epoch."""
    history: tuple[EpochRow, ...]
    """One row per epoch."""
    resumed_step: int | None
    """Optimizer step of the checkpoint that the run resumed from."""

    @property
    def best(self) -> State:
        """State of the best checkpoint."""
        return self.checkpoints[0].state

    @property
    def best_epoch(self) -> int:
        """From 1."""
        return self.checkpoints[0].epoch

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit(
    model: nn.Module,
    batches: Batches,
    validation: Iterable[Batch] | None,
    *,
    config: TrainingConfig,
    options: TrainerOptions,
    hardware: HardwareConfig | None = None,
    scales: Mapping[str, float] | None = None,
    stop_after: int | None = None,
    weights: Weights = "raw",
) -> Fit:
    """Train a classifier and select its best checkpoints.

    Args:
        model: Maps a batch of inputs to logits (B, 2). It ends with the weights of the last epoch; under fsdp a copy is
            trained, because the trained model stays sharded, and `model` does not change.
        batches: Batches of TRAIN.
        validation: Batches of VAL_SELECT; None if, and only if, `stop_after` is set.
        config: Settings of phase 1.
        options: Progress, loggers and resume checkpoints.
        hardware: Devices, memory and compiler; the defaults if None.
        scales: Parameter name -> factor of the learning rate.
        stop_after: Epoch whose weights are taken, without a selection; the schedule is that of all epochs.
        weights: With `stop_after`: the weights of the optimizer, or their moving average.
    """
    if hardware is not None and hardware.strategy == "fsdp":
        model = copy.deepcopy(model)
    loss = make_loss(config.loss, batches.row_labels)
    module = SupervisedModule(model, config, loss=loss, hardware=hardware, scales=scales)
    if stop_after is None:
        best: CheckpointLogger = BestCheckpoints(config, options.progress, options.loggers)
    else:
        best = LastCheckpoint(config, options.progress, options.loggers, stop_after=stop_after, weights=weights)
    resumed_step = train_module(module, batches, validation, epoch_logger=best, options=options)
    return Fit(
        checkpoints=tuple(best.checkpoints),
        last=trainable_state_dict(model),
        history=tuple(best.history),
        resumed_step=resumed_step,
    )


def train_module(
    module: BaseModule,
    batches: Batches,
    validation: Iterable[Batch] | None,
    *,
    epoch_logger: EpochLogger,
    options: TrainerOptions,
    before: Sequence[Callback] = (),
) -> int | None:
    """Train `module` for all its epochs; returns the optimizer step of the checkpoint that the run resumed from.

    The callbacks `before` are called before `epoch_logger`.
    """
    device, config, hardware = pick_device(), module.settings, module.hardware
    resume = ResumeCheckpoint(options.checkpoint, key=options.resume_key, every_n_steps=config.checkpoint_interval)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _reraise_interrupts(), hardware_settings(module.model, hardware, device):
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = Trainer(
            max_epochs=config.max_epochs,
            accelerator=device.type,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=lightning_strategy(hardware),
            plugins=[lightning_precision(config.precision, device)],
            accumulate_grad_batches=config.micro_batches,
            gradient_clip_val=config.gradient_clip_norm,
            logger=False,  # epoch_logger has the loggers
            callbacks=[*before, epoch_logger, resume],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        checkpoint = resume.find()
        trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=checkpoint is not None or None)
    return resume.resumed_step


@contextmanager
def _reraise_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning exits the process because of one; exit with 143 after SIGTERM, not 0."""
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def seed_all(seed: int) -> None:
    """Seed Python, numpy, torch and the workers of the loaders."""
    seed_everything(seed, workers=True, verbose=False)

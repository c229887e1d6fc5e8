"""The Lightning Trainer: runs the epochs, keeps the states that VAL_SELECT prefers, goes on from a checkpoint."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightning.pytorch import Trainer, seed_everything
from torch import nn

from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import Batch
from streetvision.models.config import HardwareConfig
from streetvision.models.device import hardware_settings, pick_device
from streetvision.models.losses import make_loss
from streetvision.training.callbacks import BestCheckpoints, Checkpoint, State, learnt_state
from streetvision.training.checkpoints import Checkpoints
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import BaseModule, EpochLogger, EpochRow
from streetvision.training.precision import lightning_precision
from streetvision.training.sharding import lightning_strategy
from streetvision.training.supervised import SupervisedModule


class Batches(Sized, Iterable[Batch], Protocol):
    """Batches of (inputs, labels), the same number each time they are walked through."""

    @property
    def row_labels(self) -> Sequence[int]:
        """Labels of all rows, for weights of the loss."""
        ...


@dataclass(frozen=True)
class Following:
    """Who watches a training run, and where it goes on when it is interrupted."""

    progress: Progress
    sinks: Sequence[Callable[[EpochRow], None]] = ()
    """Each is called with the row of every epoch."""
    checkpoint: Path | None = None
    """Where to write checkpoints to go on from; None: nowhere."""
    key: str = ""
    """What decides the result; a checkpoint of another key is not gone on from."""


@dataclass(frozen=True)
class Fit:
    """What a training run leaves behind. States hold what learns, and no more."""

    kept: tuple[Checkpoint, ...]
    """The states with the highest VAL_SELECT MCC, best first; lower NLL breaks ties."""
    last: State
    """Weights of the last epoch."""
    history: tuple[EpochRow, ...]
    """One row an epoch."""
    resumed_at: int | None
    """The optimizer step of the checkpoint that it went on from."""

    @property
    def best(self) -> State:
        """The state that VAL_SELECT prefers."""
        return self.kept[0].state

    @property
    def best_epoch(self) -> int:
        """Counted from 1."""
        return self.kept[0].epoch

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit(
    model: nn.Module,
    batches: Batches,
    validation: Iterable[Batch],
    *,
    config: TrainingConfig,
    hardware: HardwareConfig | None = None,
    following: Following,
    scales: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `model` on `batches` and choose an epoch on `validation`; `model` ends with the last epoch's weights.

    `scales` are factors of the learning rate by parameter name. With fsdp it is a copy that learns, because it ends cut
    among the processes; `model` stays as it was.
    """
    if hardware is not None and hardware.strategy == "fsdp":
        model = copy.deepcopy(model)
    loss = make_loss(config.loss, batches.row_labels)
    module = SupervisedModule(model, config, loss=loss, hardware=hardware, scales=scales)
    keeper = BestCheckpoints(config, following.progress, following.sinks)
    resumed_at = train_module(module, batches, validation, epochs=keeper, following=following)
    return Fit(
        kept=tuple(keeper.kept),
        last=learnt_state(model),
        history=tuple(keeper.history),
        resumed_at=resumed_at,
    )


def train_module(
    module: BaseModule,
    batches: Batches,
    validation: Iterable[Batch] | None,
    *,
    epochs: EpochLogger,
    following: Following,
) -> int | None:
    """Run every epoch of `module`; returns the optimizer step of the checkpoint that it went on from."""
    device, config, hardware = pick_device(), module.settings, module.hardware
    checkpoints = Checkpoints(following.checkpoint, key=following.key, every=config.checkpoint_interval)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _interrupts_passed_on(), hardware_settings(module.model, hardware, device):
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
            logger=False,
            callbacks=[epochs, checkpoints],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        found = checkpoints.found()
        trainer.fit(module, batches, validation, ckpt_path=found, weights_only=found is not None or None)
    return checkpoints.resumed_at


@contextmanager
def _interrupts_passed_on() -> Iterator[None]:
    """Lightning ends the process where it is interrupted."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch, and the workers of loaders."""
    seed_everything(seed, workers=True, verbose=False)

"""Checkpoints to go on from after an interruption: model, optimizer, schedule, random state, place in the epoch."""

# ruff: noqa: ARG002 (Lightning hands its hooks more than they use)

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import atomic_path
from streetvision.io.tensors import load_checkpoint
from streetvision.training.lightning_module import BaseModule


class Checkpoints(Callback):
    """Writes a checkpoint every so many optimizer steps and after each epoch, and takes up what one recorded.

    An epoch's is written behind the first step of the next, so that its validation is never half done.
    """

    def __init__(self, path: Path | None, *, key: str, every: int | None) -> None:
        self.path, self.key, self.every = path, key, every
        self.resumed_at: int | None = None
        self._random: list[Tensor] = []
        self._place: dict[str, int] = {}

    def found(self) -> Path | None:
        """The checkpoint to go on from; one of another key, or one that cannot be read, is left aside."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            recorded = load_checkpoint(self.path)["callbacks"]["Checkpoints"]["key"]
        except (ArtifactError, KeyError, TypeError):
            return None
        return self.path if recorded == self.key else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the loader to the place that the checkpoint recorded; Lightning takes everything else there."""
        if self.resumed_at is not None:
            trainer.train_dataloader.resume(**self._place)  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw on as if there had been no interruption."""
        if self._random:
            torch.set_rng_state(self._random[0])
            if torch.cuda.is_available() and len(self._random) > 1:  # one written on a CPU has no state of a GPU
                torch.cuda.set_rng_state(self._random[1])
            self._random = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint when its time has come."""
        assert isinstance(pl_module, BaseModule)
        done, parts = batch_idx + 1, pl_module.settings.micro_batches
        last = done == trainer.num_training_batches
        if self.path is None or self.every is None or last or done % parts:
            return
        if trainer.global_step % self.every and not (done == parts and trainer.current_epoch > 0):
            return
        self._place = {"epoch": trainer.current_epoch, "skip": done}
        if trainer.is_global_zero:
            with atomic_path(self.path) as temp:
                trainer.save_checkpoint(temp)
        else:
            trainer.save_checkpoint(self.path)  # takes part, and leaves the writing to the first process

    def state_dict(self) -> dict[str, Any]:
        """The key, the random state, and what the module has added up in this epoch."""
        random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
        module = self._module
        return {
            "key": self.key,
            "step": module.global_step,
            "place": self._place,
            "random": random,
            "sums": module.joint_sums(),
            "average": None if module.average is None else module.average.state(),
            "guarding": module.guarding,
            "eager": module.eager,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Know the module before a checkpoint is loaded."""
        assert isinstance(pl_module, BaseModule)
        self._module = pl_module

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        module = self._module
        self._random, self._place = state_dict["random"], state_dict["place"]
        module.take_up_sums(state_dict["sums"])
        module.guarding, module.eager = state_dict["guarding"], state_dict["eager"]
        if module.average is not None:
            module.average.load(state_dict["average"])
        self.resumed_at = state_dict["step"]

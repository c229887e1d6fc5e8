"""Checkpoints to resume from: model, optimizer, schedule, random state, position in the epoch."""

# ruff: noqa: ARG002 (Lightning passes its hooks more than they use)

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import atomic_path
from streetvision.io.tensors import load_checkpoint
from streetvision.training.lightning_module import BaseModule


class ResumeCheckpoint(Callback):
    """Writes a checkpoint every `every_n_steps` optimizer steps and after each epoch, and restores from one.

    A resumed run ends in the same bits as an uninterrupted one. Lightning's ModelCheckpoint does not record the random
    state, the position in the epoch or the metrics added up so far. The checkpoint of an epoch is written after the
    first step of the next one, so that it never falls into a validation.

    Args:
        path: File to write; None writes nothing.
        key: Identifies everything that affects the result; a checkpoint with another key is not used.
        every_n_steps: Optimizer steps between checkpoints; None writes nothing.
    """

    def __init__(self, path: Path | None, *, key: str, every_n_steps: int | None) -> None:
        self.path, self.key, self.every_n_steps = path, key, every_n_steps
        self.resumed_step: int | None = None
        self._rng_states: list[Tensor] = []
        self._position: dict[str, int] = {}

    def find(self) -> Path | None:
        """Return the checkpoint to resume from; None if there is none, or it is unreadable or has another key."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            key = load_checkpoint(self.path)["callbacks"]["ResumeCheckpoint"]["key"]
        except (ArtifactError, KeyError, TypeError):
            return None
        return self.path if key == self.key else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the module, which the state of this callback includes."""
        assert isinstance(pl_module, BaseModule)
        self._module = pl_module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the loader to the recorded position; Lightning restores its own loops."""
        if self.resumed_step is not None:
            trainer.train_dataloader.resume(**self._position)  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Restore the random state before the first step, after everything that draws from it to set up."""
        if self._rng_states:
            torch.set_rng_state(self._rng_states[0])
            # A checkpoint written on a CPU has no state of a GPU.
            if torch.cuda.is_available() and len(self._rng_states) > 1:
                torch.cuda.set_rng_state(self._rng_states[1])
            self._rng_states = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint if one is due."""
        assert isinstance(pl_module, BaseModule)
        batches_done, micro_batches = batch_idx + 1, pl_module.settings.micro_batches
        is_last = batches_done == trainer.num_training_batches
        if self.path is None or self.every_n_steps is None or is_last or batches_done % micro_batches:
            return
        first_step_after_an_epoch = batches_done == micro_batches and trainer.current_epoch > 0
        if trainer.global_step % self.every_n_steps and not first_step_after_an_epoch:
            return
        self._position = {"epoch": trainer.current_epoch, "skip": batches_done}
        if trainer.is_global_zero:
            with atomic_path(self.path) as temp:
                trainer.save_checkpoint(temp)
        else:
            trainer.save_checkpoint(self.path)  # takes part in collecting the state; only rank 0 writes

    def state_dict(self) -> dict[str, Any]:
        """Return the key, the random state, the position and the module's state beyond its weights."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        module = self._module
        return {
            "key": self.key,
            "step": module.global_step,
            "position": self._position,
            "rng_states": [torch.get_rng_state(), *cuda],
            "totals": module.global_totals(),
            "ema": None if module.ema is None else module.ema.state_dict(),
            "check_compiled": module.check_compiled,
            "use_eager": module.use_eager,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        module = self._module
        self._rng_states, self._position = state_dict["rng_states"], state_dict["position"]
        module.restore_totals(state_dict["totals"])
        module.check_compiled, module.use_eager = state_dict["check_compiled"], state_dict["use_eager"]
        if module.ema is not None:
            module.ema.load_state_dict(state_dict["ema"])
        self.resumed_step = state_dict["step"]

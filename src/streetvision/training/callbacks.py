"""Selection of checkpoints by VAL_SELECT, and early stopping."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from streetvision.contracts.progress import Progress
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import EpochLogger, EpochRow
from streetvision.training.sharding import full_cpu_copy
from streetvision.training.supervised import SupervisedModule, Weights

State = dict[str, Tensor]

MAX_COMPILE_DROP = 0.02
"""Largest loss of VAL_SELECT MCC by torch.compile, against the same weights without it, that is accepted."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights after an epoch, and their metrics on VAL_SELECT."""

    mcc: float
    nll: float
    """Breaks ties of the MCC; lower is better."""
    positive_rate: float
    """Share of VAL_SELECT that is predicted as class 1."""
    epoch: int
    """From 1."""
    weights: Weights
    """raw: the weights of the optimizer; ema: their moving average."""
    state: State
    """The trainable parameters and the buffers."""

    @property
    def one_class_only(self) -> bool:
        """Whether every image of VAL_SELECT gets the same class."""
        return self.positive_rate in (0.0, 1.0)


class CheckpointLogger(EpochLogger):
    """Logs the epochs of a supervised training, and keeps checkpoints."""

    def __init__(self, config: TrainingConfig, progress: Progress, loggers: Sequence[Logger] = ()) -> None:
        super().__init__(config, progress, loggers)
        self.config = config
        self.checkpoints: list[Checkpoint] = []
        """The best first."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resume checkpoint."""
        checkpoints = [{**asdict(checkpoint), "state": dict(checkpoint.state)} for checkpoint in self.checkpoints]
        return {**super().state_dict(), "checkpoints": checkpoints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a resume checkpoint."""
        super().load_state_dict(state_dict)
        self.checkpoints = [Checkpoint(**fields) for fields in state_dict["checkpoints"]]


class LastCheckpoint(CheckpointLogger):
    """Keeps the weights of one epoch, without a selection, and ends the training there."""

    def __init__(
        self,
        config: TrainingConfig,
        progress: Progress,
        loggers: Sequence[Logger] = (),
        *,
        stop_after: int,
        weights: Weights,
    ) -> None:
        super().__init__(config, progress, loggers)
        self.stop_after, self.weights = stop_after, weights

    def status(self) -> str:
        """Return the training loss of the last epoch."""
        return f"loss {self.history[-1]['train_loss']:.3f}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch, and keep the weights of the last one."""
        assert isinstance(pl_module, SupervisedModule)
        epoch = trainer.current_epoch + 1
        self.log_epoch(trainer, {"epoch": epoch, "train_loss": pl_module.pop_train_loss()})
        if epoch == self.stop_after:
            state = checkpoint_state(pl_module, self.weights)
            self.checkpoints = [Checkpoint(math.nan, math.nan, math.nan, epoch, self.weights, state)]
            trainer.should_stop = True


class BestCheckpoints(CheckpointLogger):
    """Keeps the `save_top_k` best checkpoints and stops the training early.

    Lightning's ModelCheckpoint and EarlyStopping monitor one value. Here ties of the MCC are broken by the NLL, the
    raw and the averaged weights of an epoch compete with each other, and checkpoints hold trainable parameters only.
    """

    def status(self) -> str:
        """Return the VAL_SELECT MCC of the last epoch."""
        return f"VAL_SELECT MCC {self.history[-1]['val_select_mcc']:.3f}"

    def publish(self, row: EpochRow) -> None:
        """Send a row to the loggers and to the progress, which may raise to end the training."""
        super().publish(row)
        self.progress.epoch(row)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch and keep its weights if they are among the best."""
        assert isinstance(pl_module, SupervisedModule)
        epoch = trainer.current_epoch + 1
        row: EpochRow = {"epoch": epoch, "train_loss": pl_module.pop_train_loss()}
        weights: tuple[Weights, ...] = ("raw",) if pl_module.ema is None else ("raw", "ema")
        for kind in weights:
            metrics = pl_module.pop_metrics(kind)
            prefix = "" if kind == "raw" else "ema_"
            row |= {f"{prefix}val_select_{name}": value for name, value in metrics.items()}
            self._add(Checkpoint(**metrics, epoch=epoch, weights=kind, state={}), pl_module)
        if pl_module.check_compiled:
            self._check_compiled(pl_module, float(row["val_select_mcc"]))
        self.log_epoch(trainer, row)
        patience = self.config.early_stopping_patience
        if patience is not None and epoch - self.checkpoints[0].epoch >= patience:
            trainer.should_stop = True

    def _add(self, candidate: Checkpoint, module: SupervisedModule) -> None:
        """Keep `candidate`, whose state is still empty, if it is one of the best; weights are copied only then."""
        # The sort is stable, so of equal checkpoints the earlier one is better.
        ranked = sorted([*self.checkpoints, candidate], key=lambda c: (c.mcc, -c.nll), reverse=True)
        best = ranked[: self.config.save_top_k]
        if candidate in best:
            best[best.index(candidate)] = replace(candidate, state=checkpoint_state(module, candidate.weights))
        self.checkpoints = best

    def _check_compiled(self, module: SupervisedModule, compiled_mcc: float) -> None:
        """After the first epoch, compare the compiled model with the same weights run eagerly."""
        module.check_compiled = False
        drop = module.pop_metrics("eager")["mcc"] - compiled_mcc
        if drop > MAX_COMPILE_DROP:
            module.use_eager = True
            self.progress.warn(
                f"torch.compile lowers the VAL_SELECT MCC: it loses {drop:.3f} against the same weights run eagerly, "
                "so training continues without it; set hardware.compile=false"
            )


def checkpoint_state(module: SupervisedModule, weights: Weights) -> State:
    """Return copies on the CPU of the trainable parameters and the buffers; with `ema`, of the averaged parameters."""
    state = trainable_state_dict(module.model)
    if weights == "ema":
        assert module.ema is not None
        state |= {name: value.detach().cpu().clone() for name, value in module.ema.tensors.items()}
    return state


def trainable_state_dict(module: nn.Module) -> State:
    """Return copies on the CPU of the trainable parameters and the buffers; all else is as before the training."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: full_cpu_copy(value) for name, value in module.state_dict().items() if name not in frozen}


def cpu_state_dict(module: nn.Module) -> State:
    """Return a copy of the module's state dict on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

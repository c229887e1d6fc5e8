"""What is kept of a training run: one row an epoch, and the states that VAL_SELECT prefers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from streetvision.contracts.progress import Progress
from streetvision.training.config import TrainingConfig
from streetvision.training.lightning_module import EpochLogger, EpochRow
from streetvision.training.sharding import whole
from streetvision.training.supervised import SupervisedModule, Weights

State = dict[str, Tensor]

MAX_COMPILE_DROP = 0.02
"""VAL_SELECT MCC that the compiled model may lose against the same weights run eagerly."""


@dataclass(frozen=True)
class Checkpoint:
    """A state that VAL_SELECT prefers."""

    mcc: float
    """VAL_SELECT's."""
    nll: float
    """VAL_SELECT's; lower breaks ties of MCC."""
    called: float
    """Share of VAL_SELECT that it calls class 1."""
    epoch: int
    """Counted from 1."""
    weights: Weights
    """raw: as the optimizer left them; ema: their average."""
    state: State
    """What learns."""

    @property
    def one_class_only(self) -> bool:
        """Whether it gives every image of VAL_SELECT the same answer."""
        return self.called in (0.0, 1.0)


class BestCheckpoints(EpochLogger):
    """Judges the weights after each epoch, keeps the best, and stops when patience ends."""

    def __init__(
        self, config: TrainingConfig, progress: Progress, sinks: Sequence[Callable[[EpochRow], None]] = ()
    ) -> None:
        super().__init__(config, progress, sinks)
        self.config = config
        self.kept: list[Checkpoint] = []

    def news(self) -> str:
        """VAL_SELECT's judgement of the last epoch."""
        return f"VAL_SELECT MCC {self.history[-1]['val_select_mcc']:.3f}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row and keep its weights if they are among the best."""
        assert isinstance(pl_module, SupervisedModule)
        epoch = trainer.current_epoch + 1
        row: EpochRow = {"epoch": epoch, "train_loss": pl_module.take_train_loss()}
        weights: tuple[Weights, ...] = ("raw",) if pl_module.average is None else ("raw", "ema")
        for kind in weights:
            figures = pl_module.pop_metrics(kind)
            row |= {f"{'' if kind == 'raw' else 'ema_'}val_select_{name}": value for name, value in figures.items()}
            self._consider(Checkpoint(**figures, epoch=epoch, weights=kind, state={}), pl_module)
        if pl_module.guarding:
            self._guard(pl_module, float(row["val_select_mcc"]))
        self.write_row(trainer, row)
        if (
            self.config.early_stopping_patience is not None
            and epoch - self.kept[0].epoch >= self.config.early_stopping_patience
        ):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint records of it."""
        kept = [{**asdict(one), "state": dict(one.state)} for one in self.kept]
        return {**super().state_dict(), "kept": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict(state_dict)
        self.kept = [Checkpoint(**one) for one in state_dict["kept"]]

    def _consider(self, candidate: Checkpoint, module: SupervisedModule) -> None:
        ranked = sorted([*self.kept, candidate], key=lambda one: (one.mcc, -one.nll), reverse=True)
        kept = ranked[: self.config.save_top_k]
        if candidate in kept:
            state = learnt_state(module.model)
            if candidate.weights == "ema":
                assert module.average is not None
                state |= {name: value.detach().cpu().clone() for name, value in module.average.values.items()}
            kept[kept.index(candidate)] = Checkpoint(**{**vars(candidate), "state": state})
        self.kept = kept

    def _guard(self, module: SupervisedModule, compiled_mcc: float) -> None:
        """Judge the compiled model once against the same weights run eagerly."""
        module.guarding = False
        lost = module.pop_metrics("eager")["mcc"] - compiled_mcc
        if lost > MAX_COMPILE_DROP:
            module.eager = True
            self.progress.warn(
                f"the compiled model loses {lost:.3f} of VAL_SELECT MCC against the same weights run eagerly, "
                "so training goes on without it; leave out hardware.compile"
            )


def learnt_state(module: nn.Module) -> State:
    """Copies, on the CPU, of the parameters that learn and of the buffers; the rest is as it was before training."""
    still = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: whole(value) for name, value in module.state_dict().items() if name not in still}


def cpu_state(module: nn.Module) -> State:
    """A copy of the module's state dict on the CPU."""
    return {name: copy.deepcopy(tensor.detach().cpu()) for name, tensor in module.state_dict().items()}

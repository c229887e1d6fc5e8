"""MaC-Cal: the classifier head trained anew on fixed features, under random masks whose sparsity adapts.

Mask-based Classifier Calibration, Ni, He, Yang and Guo 2025, arXiv 2508.09116. From the paper's abstract and figure
captions: two stages, features fixed in the second; random masks on the parameters of the classifier while it is trained
again; the share of weights kept follows the gap between confidence and accuracy; overconfidence and underconfidence are
both meant. This project's reading, where the text was not to be had: one Bernoulli mask a step on the weights of every
linear layer of the head, the kept ones scaled up by 1 / share; after each epoch the share moves against the gap on
VAL_SELECT, so that overconfidence makes masks sparser; the epoch with VAL_SELECT's lowest NLL is taken; all weights
answer, unmasked.

Legend: N rows, P features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.training.callbacks import State, cpu_state
from streetvision.training.config import MacCalConfig
from streetvision.training.lightning_module import EpochRow
from streetvision.training.optim import make_adamw

Labelled = tuple[Tensor, Tensor]
"""Features (N, P) float32 and labels (N,) int64."""


@dataclass(frozen=True)
class MacCalFit:
    """What the second stage leaves behind."""

    best: State
    """State dict of the head at the epoch with VAL_SELECT's lowest NLL."""
    history: tuple[EpochRow, ...]
    """One row an epoch."""
    best_epoch: int
    """Counted from 1."""

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit_mac_cal(
    head: nn.Module, train: Labelled, select: Labelled, *, config: MacCalConfig, progress: Progress
) -> MacCalFit:
    """Train `head`, features (N, P) to logits (N, 2), under masks; raises StreetVisionError if a loss is not finite."""
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_adamw(head, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    retention, history, states = config.retention, list[EpochRow](), list[State]()
    for epoch in progress.track(range(1, config.epochs + 1), total=config.epochs, label="mac_cal"):
        head.train()
        for rows in torch.split(torch.randperm(len(train[0]), generator=generator), config.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(masked(head, train[0][rows], retention, generator), train[1][rows])
            if not torch.isfinite(loss):
                raise StreetVisionError(f"the loss is {loss.item()} at epoch {epoch}", "lower mac_cal.learning_rate")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = judge_head(head, *select)
        history.append({"epoch": epoch, "retention": retention, **found})
        states.append(cpu_state(head))
        gap = found["val_select_confidence"] - found["val_select_accuracy"]
        retention = min(1.0, max(config.min_retention, retention - config.adaptation * gap))
    best = min(range(config.epochs), key=lambda i: history[i]["val_select_nll"])
    return MacCalFit(best=states[best], history=tuple(history), best_epoch=best + 1)


def masked(head: nn.Module, features: Tensor, retention: float, generator: torch.Generator) -> Tensor:
    """Logits (N, 2) of the head with a random share of its linear layers' weights, scaled up for those left out."""
    layers = {name: module for name, module in head.named_modules() if isinstance(module, nn.Linear)}
    kept = {f"{name}.weight" if name else "weight": layer.weight for name, layer in layers.items()}
    masks = {name: torch.rand(w.shape, generator=generator) < retention for name, w in kept.items()}
    logits: Tensor = functional_call(head, {name: w * masks[name] / retention for name, w in kept.items()}, (features,))
    return logits


@torch.no_grad()
def judge_head(head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean confidence, accuracy and NLL of the whole head on VAL_SELECT."""
    logits = head.eval()(features)
    confidence, called = logits.softmax(dim=1).max(dim=1)
    return {
        "val_select_confidence": confidence.mean().item(),
        "val_select_accuracy": (called == labels).float().mean().item(),
        "val_select_nll": F.cross_entropy(logits, labels).item(),
    }

"""MaC-Cal: retrain the classifier head on fixed features, under random masks whose sparsity adapts.

Mask-based Classifier Calibration: Ni, He, Yang and Guo 2025, arXiv 2508.09116. The paper's abstract and figure captions
state: there are two stages, and the features are fixed in the second; random masks are applied to the parameters of the
classifier while it is retrained; the share of retained weights follows the gap between confidence and accuracy; both
overconfidence and underconfidence are corrected.

The full text was not available, so these choices are this project's own: one Bernoulli mask per step on the weights of
every linear layer of the head, with retained weights divided by their share; after each epoch the share moves against
the gap on VAL_SELECT, so that overconfidence makes masks sparser; the epoch with the lowest NLL on VAL_SELECT is
selected; the evaluation uses all weights, without masks.

Shapes: N rows, P features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.training.callbacks import State, cpu_state_dict
from streetvision.training.config import MacCalConfig
from streetvision.training.lightning_module import EpochRow
from streetvision.training.optim import make_adamw

LabeledFeatures = tuple[Tensor, Tensor]
"""Features (N, P) float32 and labels (N,) int64."""


@dataclass(frozen=True)
class MacCalFit:
    """Result of the second stage."""

    best: State
    """State dict of the head at the epoch with the lowest NLL on VAL_SELECT."""
    history: tuple[EpochRow, ...]
    """One row per epoch."""
    best_epoch: int
    """From 1."""

    @property
    def best_row(self) -> EpochRow:
        """The history's row of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit_mac_cal(
    head: nn.Module, train: LabeledFeatures, select: LabeledFeatures, *, config: MacCalConfig, progress: Progress
) -> MacCalFit:
    """Train `head` under masks.

    Args:
        head: Maps features (N, P) to logits (N, 2); it ends with the weights of the last epoch.
        train: Features and labels of TRAIN.
        select: Features and labels of VAL_SELECT.
        config: Optimizer and masks.
        progress: Shows a progress bar.

    Raises:
        StreetVisionError: A loss is not finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_adamw(head, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    retention, history, states = config.retention, list[EpochRow](), list[State]()
    for epoch in progress.track(range(1, config.epochs + 1), total=config.epochs, label="mac_cal"):
        head.train()
        for rows in torch.split(torch.randperm(len(train[0]), generator=generator), config.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(masked_logits(head, train[0][rows], retention, generator), train[1][rows])
            if not torch.isfinite(loss):
                raise StreetVisionError(f"the loss is {loss.item()} at epoch {epoch}", "lower mac_cal.learning_rate")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        metrics = evaluate_head(head, *select)
        history.append({"epoch": epoch, "retention": retention, **metrics})
        states.append(cpu_state_dict(head))
        # Overconfidence (a positive gap) makes the masks of the next epoch sparser.
        gap = metrics["val_select_confidence"] - metrics["val_select_accuracy"]
        retention = min(1.0, max(config.min_retention, retention - config.adaptation * gap))
    best = min(range(config.epochs), key=lambda i: history[i]["val_select_nll"])
    return MacCalFit(best=states[best], history=tuple(history), best_epoch=best + 1)


def masked_logits(head: nn.Module, features: Tensor, retention: float, generator: torch.Generator) -> Tensor:
    """Return logits (N, 2) with a random share of the weights of each linear layer masked.

    Args:
        head: Maps features to logits.
        features: (N, P).
        retention: Probability that a weight is retained; retained weights are divided by it, as in dropout.
        generator: Draws the masks.
    """
    layers = {name: module for name, module in head.named_modules() if isinstance(module, nn.Linear)}
    weights = {f"{name}.weight" if name else "weight": layer.weight for name, layer in layers.items()}
    masks = {name: torch.rand(weight.shape, generator=generator) < retention for name, weight in weights.items()}
    masked = {name: weight * masks[name] / retention for name, weight in weights.items()}
    logits: Tensor = functional_call(head, masked, (features,))
    return logits


@torch.no_grad()
def evaluate_head(head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Return mean confidence, accuracy and NLL on VAL_SELECT, without masks."""
    logits = head.eval()(features)
    confidence, predictions = logits.softmax(dim=1).max(dim=1)
    return {
        "val_select_confidence": confidence.mean().item(),
        "val_select_accuracy": (predictions == labels).float().mean().item(),
        "val_select_nll": F.cross_entropy(logits, labels).item(),
    }

"""The optimizer, its schedule, and the average of the weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

EMA_START = 10
"""A ramped average forgets faster in its first steps: decay (1 + step) / (10 + step) until that exceeds its own."""


def make_adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
    fused: bool = False,
) -> AdamW:
    """AdamW over the parameters that ask for gradients; norms and biases (one-dimensional) do not decay.

    `scales` are factors of the rate by parameter name; those that are not named learn at 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for decays in (True, False):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) is decays:
                key = (weight_decay if decays else 0.0, (scales or {}).get(name, 1.0))
                groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": decay, "lr": learning_rate * scale}
        for (decay, scale), parameters in groups.items()
    ]
    return AdamW(settings, lr=learning_rate, fused=fused or None)


def cosine_with_warmup(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear rise over `warmup_steps`, then half a cosine down to zero at `total_steps`, counted in optimizer steps."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


class WeightAverage:
    """Exponential moving average of what learns, and of running statistics beside it (Polyak and Juditsky, 1992)."""

    def __init__(self, module: nn.Module, decay: float, *, ramped: bool = True) -> None:
        self.decay, self.ramped, self.steps = decay, ramped, 0
        still = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        moving = {name: value for name, value in module.state_dict().items() if name not in still}
        self.values = {name: value.detach().clone() for name, value in moving.items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (EMA_START + self.steps)) if self.ramped else self.decay
        own = module.state_dict()
        for name, value in self.values.items():
            value.lerp_(own[name], 1.0 - decay)

    def to(self, device: torch.device) -> None:
        """Move the average."""
        self.values = {name: value.to(device) for name, value in self.values.items()}

    def state(self) -> dict[str, Tensor | int]:
        """What `load` takes."""
        return {**self.values, "": self.steps}

    def load(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from a state."""
        self.steps = int(state[""])
        for name, value in self.values.items():
            value.copy_(torch.as_tensor(state[name]))

"""The optimizer, its learning rate schedule, and the moving average of the weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

EMA_RAMP = 10
"""A ramped average has the decay (1 + step) / (EMA_RAMP + step) until that reaches the configured decay."""


def make_adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
    fused: bool = False,
) -> AdamW:
    """Build AdamW over the trainable parameters of `module`.

    Args:
        module: Parameters that do not require gradients are left out.
        learning_rate: Learning rate of a parameter whose scale is 1.
        weight_decay: Weight decay of matrices; norms and biases (one-dimensional parameters) have none.
        scales: Parameter name -> factor of the learning rate; 1 for names that are missing.
        fused: Use the fused CUDA implementation.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for has_decay in (True, False):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) is has_decay:
                key = (weight_decay if has_decay else 0.0, (scales or {}).get(name, 1.0))
                groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": decay, "lr": learning_rate * scale}
        for (decay, scale), parameters in groups.items()
    ]
    return AdamW(settings, lr=learning_rate, fused=fused or None)


def cosine_with_warmup(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Build a schedule that rises linearly over `warmup_steps`, then falls along half a cosine to 0 at `total_steps`.

    Steps are optimizer steps.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


class ExponentialMovingAverage:
    """Exponential moving average of the trainable parameters and of floating-point buffers.

    torch's `AveragedModel` copies the whole model, the frozen backbone included; this holds only the tensors that
    change, and they are applied with `torch.func.functional_call`.

    Args:
        module: The module to average.
        decay: Share of the average that a step keeps.
        ramped: Use a smaller decay in the first steps, so that the initial weights are forgotten sooner.

    References:
        Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """

    def __init__(self, module: nn.Module, decay: float, *, ramped: bool = True) -> None:
        self.decay, self.ramped, self.steps = decay, ramped, 0
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self.tensors = {
            name: value.detach().clone()
            for name, value in module.state_dict().items()
            if name not in frozen and value.is_floating_point()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average with the weights of `module` after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (EMA_RAMP + self.steps)) if self.ramped else self.decay
        current = module.state_dict()
        for name, value in self.tensors.items():
            value.lerp_(current[name], 1.0 - decay)

    def to(self, device: torch.device) -> None:
        """Move the average to `device`."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the averaged tensors and, under the empty name, the number of steps."""
        return {**self.tensors, "": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Restore what `state_dict` returned."""
        self.steps = int(state[""])
        for name, value in self.tensors.items():
            value.copy_(torch.as_tensor(state[name]))

"""The optimizer and its schedule."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def make_adamw(module: nn.Module, *, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over the parameters that ask for gradients; norms and biases (one-dimensional) do not decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate)


def cosine_with_warmup(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear rise over `warmup_steps`, then half a cosine down to zero at `total_steps`, counted in optimizer steps."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)

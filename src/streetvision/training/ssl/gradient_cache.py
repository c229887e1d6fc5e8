"""Gradients of a loss over a large batch, in the memory of a small one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class GradientCache:
    """Embeddings of `views` in a graph that ends at them; `carry_on` takes their gradients to the parameters.

    `views` are (N, ...) each, `embed` maps rows to embeddings (N, D); `at_once` rows are embedded at a time, without a
    graph here, and again in `carry_on`, where what is random in `embed` is drawn the same. The result is the gradient
    of the whole batch: accumulation would give each part its own negatives. Gao et al. 2021, arXiv 2101.06983.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], views: Sequence[Tensor], *, at_once: int) -> None:
        self._embed = embed
        self._chunks = [rows for view in views for rows in torch.split(view, at_once)]
        self._states, parts = [], []
        with torch.no_grad():
            for rows in self._chunks:
                self._states.append(_random_state(rows))
                parts.append(embed(rows))
        self._sizes = [len(part) for part in parts]
        self._embeddings = torch.cat(parts).detach().requires_grad_()
        self.embeddings = torch.split(self._embeddings, [len(view) for view in views])
        """(N, D) for each view."""

    def carry_on(self) -> None:
        """Add the gradients that a loss has left at the embeddings to the parameters of `embed`."""
        assert self._embeddings.grad is not None
        gradients = torch.split(self._embeddings.grad, self._sizes)
        for rows, state, gradient in zip(self._chunks, self._states, gradients, strict=True):
            with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
                _restore(state, rows)
                self._embed(rows).backward(gradient)  # type: ignore[no-untyped-call]


def _random_state(rows: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(rows.device) if rows.is_cuda else torch.get_rng_state()


def _restore(state: Tensor, rows: Tensor) -> None:
    if rows.is_cuda:
        torch.cuda.set_rng_state(state, rows.device)
    else:
        torch.set_rng_state(state)

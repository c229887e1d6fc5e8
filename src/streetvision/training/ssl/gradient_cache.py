"""Gradients of a loss over a large batch, in the memory of a small one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class GradientCache:
    """Embeddings of a large batch that are computed in chunks, without keeping their graphs.

    A loss of the embeddings is back-propagated to them; then `backward` embeds each chunk again, with a graph and with
    the same random draws, and passes the gradients on to the parameters. The result is the gradient of the whole batch.
    Gradient accumulation would not give it, because each part would have its own negatives.

    Args:
        embed: Maps rows (B, ...) to embeddings (B, D).
        views: Inputs (N, ...) of each view.
        chunk_size: Rows that are embedded at a time.

    References:
        Gao et al. 2021, arXiv 2101.06983.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], views: Sequence[Tensor], *, chunk_size: int) -> None:
        self._embed = embed
        self._chunks = [rows for view in views for rows in torch.split(view, chunk_size)]
        self._rng_states, parts = [], []
        with torch.no_grad():
            for rows in self._chunks:
                self._rng_states.append(_rng_state(rows))
                parts.append(embed(rows))
        self._sizes = [len(part) for part in parts]
        # A leaf, at which the gradients of the loss collect.
        self._leaf = torch.cat(parts).detach().requires_grad_()
        self.embeddings = torch.split(self._leaf, [len(view) for view in views])
        """(N, D) of each view."""

    def backward(self) -> None:
        """Add the gradients of the parameters of `embed`; call it after the loss's own backward."""
        assert self._leaf.grad is not None
        gradients = torch.split(self._leaf.grad, self._sizes)
        for rows, state, gradient in zip(self._chunks, self._rng_states, gradients, strict=True):
            with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
                _set_rng_state(state, rows)
                self._embed(rows).backward(gradient)  # type: ignore[no-untyped-call]


def _rng_state(rows: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(rows.device) if rows.is_cuda else torch.get_rng_state()


def _set_rng_state(state: Tensor, rows: Tensor) -> None:
    if rows.is_cuda:
        torch.cuda.set_rng_state(state, rows.device)
    else:
        torch.set_rng_state(state)

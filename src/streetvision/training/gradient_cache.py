"""Gradients of a loss over a large batch, in the memory of a small one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def cached_gradients(
    embed: Callable[[Tensor], Tensor], views: Sequence[Tensor], loss: Callable[..., Tensor], *, at_once: int
) -> Tensor:
    """Add the gradients of `loss` of the embedded views to the parameters of `embed`, `at_once` rows at a time.

    `views` are (N, ...) each, `embed` maps rows to embeddings (N, D), `loss` takes the embeddings of all views. The
    rows are embedded without a graph, the loss gives the gradient of each embedding, and the rows are embedded again
    to carry it on. What is random in `embed` is drawn the same both times. The result is the gradient of the whole
    batch: accumulation would give each part its own negatives. Returns the loss. Gao et al. 2021, arXiv 2101.06983.
    """
    states, parts = [], []
    with torch.no_grad():
        for rows in _chunks(views, at_once):
            states.append(_random_state(rows))
            parts.append(embed(rows))
    sizes = [len(view) for view in views]
    embeddings = torch.cat(parts).detach().requires_grad_()
    value = loss(*torch.split(embeddings, sizes))
    value.backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    gradients = torch.split(embeddings.grad, [len(part) for part in parts])
    for rows, state, gradient in zip(_chunks(views, at_once), states, gradients, strict=True):
        with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
            _restore(state, rows)
            embed(rows).backward(gradient)  # type: ignore[no-untyped-call]
    return value.detach()


def _chunks(views: Sequence[Tensor], at_once: int) -> list[Tensor]:
    return [rows for view in views for rows in torch.split(view, at_once)]


def _random_state(rows: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(rows.device) if rows.is_cuda else torch.get_rng_state()


def _restore(state: Tensor, rows: Tensor) -> None:
    if rows.is_cuda:
        torch.cuda.set_rng_state(state, rows.device)
    else:
        torch.set_rng_state(state)

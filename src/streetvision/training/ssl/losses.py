"""Self-supervised losses of the embeddings of two views, and measures of their quality.

Shapes: N images, two views each; D width of an embedding; K prototypes; W processes. The first and the second views are
(N, D) each, and row i of both belongs to image i. Every loss normalizes the embeddings.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_gather

from streetvision.contracts.errors import ConfigError

MAX_PAIRED_ROWS = 4096
"""Largest number of embeddings of which all pairs are computed."""
SIMILARITY_ROWS = 512
"""Rows of the similarity matrix in memory at a time: 16 MB for 8,192 columns."""


class SimCLRLoss(nn.Module):
    """NT-Xent loss: each view must be closer to the other view of its image than to all other views.

    Cross-entropy over the cosine similarities of all 2NW views of all processes, divided by the temperature, without
    each view's similarity to itself. A view has 2NW - 2 negatives, less the views of its own group. On uninformative
    embeddings the loss is ln(2NW - 1).

    Args:
        temperature: Divisor of the similarities.

    Raises:
        ConfigError: The temperature is not above 0.

    References:
        Chen et al. 2020, arXiv 2002.05709, equation 1. Images of one group are not negatives of each other, as in
        Khosla et al. 2020, arXiv 2004.11362.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"the temperature must be above 0; got {temperature:g}", "use a value from 0.07 to 0.2")
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return the mean loss of this process's views against those of all processes.

        Args:
            first: First views (N, D).
            second: Second views (N, D).
            group_ids: Integers (N,); images with the same id are not negatives. None: every image is its own group.
        """
        first, second = (F.normalize(_at_least_float32(view), dim=1) for view in (first, second))
        count, offset = len(first), len(first) * _rank()
        all_views = torch.cat([gather(first), gather(second)])  # (2NW, D)
        total = len(all_views) // 2
        own = torch.arange(offset, offset + count, device=first.device)
        loss: Tensor = _ContrastiveLoss.apply(
            torch.cat([first, second]),
            all_views,
            torch.cat([own, own + total]),
            torch.cat([own + total, own]),
            None if group_ids is None else _gather_without_gradient(group_ids).repeat(2),
            self.temperature,
        )
        return loss


class _ContrastiveLoss(torch.autograd.Function):
    """Mean cross-entropy of anchors (M, D) against all views (L, D), computed in blocks of rows.

    The M x L similarities are never in memory together: only the log-sum-exp of each row is kept, and the backward pass
    computes the rows again. All of it is in the precision of the inputs, also under autocast. `self_index` and
    `positive_index` (M,) are the positions of each anchor and of its positive in `all_views`; `group_ids` is (L,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        all_views: Tensor,
        self_index: Tensor,
        positive_index: Tensor,
        group_ids: Tensor | None,
        temperature: float,
    ) -> Tensor:
        log_sums = anchors.new_empty(len(anchors))
        for rows in _row_blocks(len(anchors)):
            similarities = _similarities(
                anchors[rows], all_views, self_index[rows], positive_index[rows], group_ids, temperature
            )
            log_sums[rows] = similarities.logsumexp(dim=1)
        ctx.save_for_backward(anchors, all_views, self_index, positive_index, group_ids, log_sums)
        ctx.temperature = temperature
        return (log_sums - (anchors * all_views[positive_index]).sum(dim=1) / temperature).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        anchors, all_views, self_index, positive_index, group_ids, log_sums = ctx.saved_tensors
        grad_anchors, grad_views = torch.empty_like(anchors), torch.zeros_like(all_views)
        scale = grad_output / (len(anchors) * ctx.temperature)
        for rows in _row_blocks(len(anchors)):
            similarities = _similarities(
                anchors[rows], all_views, self_index[rows], positive_index[rows], group_ids, ctx.temperature
            )
            # The gradient of the cross-entropy: softmax minus one-hot.
            gradient = similarities.sub_(log_sums[rows, None]).exp_()
            gradient[torch.arange(len(gradient), device=gradient.device), positive_index[rows]] -= 1
            gradient *= scale
            with torch.autocast(anchors.device.type, enabled=False):
                grad_anchors[rows] = gradient @ all_views
                grad_views.addmm_(gradient.T, anchors[rows])
        return grad_anchors, grad_views, None, None, None, None


def _row_blocks(count: int) -> list[slice]:
    return [slice(start, start + SIMILARITY_ROWS) for start in range(0, count, SIMILARITY_ROWS)]


def _similarities(
    anchors: Tensor,
    all_views: Tensor,
    self_index: Tensor,
    positive_index: Tensor,
    group_ids: Tensor | None,
    temperature: float,
) -> Tensor:
    """Similarities (M, L) over the temperature; -inf for an anchor itself and its group, except for its positive."""
    with torch.autocast(anchors.device.type, enabled=False):
        similarities = (anchors / temperature) @ all_views.T
    rows = torch.arange(len(anchors), device=anchors.device)
    if group_ids is not None:
        same_group = group_ids[self_index, None] == group_ids
        same_group[rows, positive_index] = False
        similarities.masked_fill_(same_group, -torch.inf)
    similarities[rows, self_index] = -torch.inf
    return similarities


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 2 - 2 * cosine similarity.

    Args:
        predicted: Predictions of the online network (N, D).
        target: Embeddings by the momentum target (N, D); no gradient reaches them.

    References:
        Grill et al. 2020, arXiv 2006.07733, equation 2.
    """
    return (2 - 2 * F.cosine_similarity(_at_least_float32(predicted), _at_least_float32(target.detach()), dim=1)).mean()


def swav_loss(
    first: Tensor, second: Tensor, prototypes: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05
) -> Tensor:
    """Return the mean cross-entropy of predicting each view's prototype code from the other view.

    At ln K all images get the same code. A lower epsilon, which makes the codes sharper, leads away from there.

    Args:
        first: First views (N, D).
        second: Second views (N, D).
        prototypes: (K, D).
        temperature: Divisor of the similarities in the predictions.
        epsilon: Divisor of the similarities in the codes.

    References:
        Caron et al. 2020, arXiv 2006.09882, equations 1 to 3.
    """
    first, second, prototypes = (F.normalize(_at_least_float32(rows), dim=1) for rows in (first, second, prototypes))
    scores_first, scores_second = first @ prototypes.T, second @ prototypes.T  # (N, K)
    with torch.no_grad():
        codes_first, codes_second = (sinkhorn(scores, epsilon=epsilon) for scores in (scores_first, scores_second))
    log_p_first, log_p_second = (F.log_softmax(s / temperature, dim=1) for s in (scores_first, scores_second))
    loss_first = -(codes_first * log_p_second).sum(dim=1).mean()
    loss_second = -(codes_second * log_p_first).sum(dim=1).mean()
    return (loss_first + loss_second) / 2


def group_prototype_loss(first: Tensor, second: Tensor, group_ids: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the loss by which each view finds the prototype of its group among those of all groups in the batch.

    The prototype of a group is the mean of the other views of its images, over all processes. The loss is the
    cross-entropy over the cosine similarities divided by the temperature; with G groups in the batch it is ln(G) on
    uninformative embeddings, and 0 for one group.

    Args:
        first: First views (N, D).
        second: Second views (N, D).
        group_ids: Integers (N,).
        temperature: Divisor of the similarities.

    References:
        Snell et al. 2017, Prototypical Networks, arXiv 1703.05175.
    """
    first, second = (F.normalize(_at_least_float32(view), dim=1) for view in (first, second))
    _, groups = torch.unique(_gather_without_gradient(group_ids), return_inverse=True)  # (NW,)
    own = groups[len(first) * _rank() :][: len(first)]

    def one_way(views: Tensor, others: Tensor) -> Tensor:
        rows = gather(others)
        sums = rows.new_zeros(int(groups.max()) + 1, rows.shape[1]).index_add(0, groups, rows)
        return F.cross_entropy(views @ F.normalize(sums, dim=1).T / temperature, own)

    return (one_way(first, second) + one_way(second, first)) / 2


def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Return soft assignments (N, K) of rows to prototypes that use all prototypes equally, over all processes.

    This is the alternating normalization of exp(scores / epsilon) by Sinkhorn and Knopp; every row sums to 1. It works
    on logarithms, because exp of a similarity over 0.05 overflows in half precision, and in float32 at least: an Apple
    GPU has no float64.
    """
    logs = _at_least_float32(scores) / epsilon
    for _ in range(rounds):
        # Over the rows of all processes, (1, K); then over the prototypes, (N, 1).
        column_sums = _gather_without_gradient(logs.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0, keepdim=True)
        logs = logs - column_sums
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp().to(scores.dtype)


def gather(rows: Tensor) -> Tensor:
    """Return the rows (N, D) of all processes as (NW, D), by rank; gradients flow back to each process."""
    return torch.cat(all_gather(rows)) if _is_distributed() else rows  # type: ignore[no-untyped-call]


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of the two views on the unit sphere; 0 if the views of each image coincide.

    References:
        Wang and Isola 2020, arXiv 2005.10242, section 4.2.
    """
    distances = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float((distances**2).sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Return the log of the mean Gaussian potential of all pairs on the unit sphere; 0 if all embeddings coincide.

    Of more than 4,096 embeddings (N, D), evenly spaced ones are used, because the pairs grow with the square.

    References:
        Wang and Isola 2020, arXiv 2005.10242, section 4.1, with t = 2.
    """
    subset = embeddings[:: -(-len(embeddings) // MAX_PAIRED_ROWS)]
    distances = torch.pdist(F.normalize(subset.double(), dim=1))
    return float((-2 * distances**2).exp().mean().log())


def effective_rank(embeddings: Tensor) -> float:
    """Return how many directions around their mean the embeddings (N, D) use; 1 if all are on a line.

    It is the exponential of the entropy of the singular values' shares.

    References:
        Roy and Vetterli 2007, EUSIPCO, pages 606 to 610, https://doi.org/10.5281/zenodo.40468.
    """
    values = torch.linalg.svdvals(embeddings.double() - embeddings.double().mean(dim=0))
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values[values > 0] / total
    return float((-(shares * shares.log()).sum()).exp())


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _gather_without_gradient(rows: Tensor) -> Tensor:
    if not _is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0

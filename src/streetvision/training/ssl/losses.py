"""What two views of the same images must have in common: losses without labels, as functions of embeddings.

Legend: N images, each seen twice; D width of an embedding; K prototypes; W processes. First and second views are
(N, D) each, row by row of the same image, in any scale: every loss here normalises them.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_gather

from streetvision.contracts.errors import ConfigError

MOST_PAIRED = 4096
"""Embeddings of which every pair is looked at."""
CONTRASTED = 512
"""Rows whose similarities to all others lie in memory at a time: 16 MB for 8,192 others."""


class SimCLRLoss(nn.Module):
    """NT-Xent: each view must tell its partner from all other views in the batch.

    Cross-entropy over the cosine similarities of all 2N views, divided by the temperature, the diagonal left out.
    Negatives come from the batch alone, those of all processes together: 2 N W - 2 for each view, less those of its
    own kin. On embeddings that say nothing it is ln(2 N W - 1). Chen et al. 2020, arXiv 2002.05709, equation 1; that
    images known to show the same are no negatives is as in Khosla et al. 2020, arXiv 2004.11362.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"the temperature must be above 0; got {temperature:g}", "0.07 to 0.2 is usual")
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, kin: Tensor | None = None) -> Tensor:
        """Mean loss of first and second views (N, D) of this process against those of all processes.

        `kin` (N,) whole numbers: images of the same number are not told apart. None: each image has its own.
        """
        first, second = (F.normalize(_at_least_float32(view), dim=1) for view in (first, second))
        count, before = len(first), len(first) * _rank()
        everyone = torch.cat([gather(first), gather(second)])  # (2NW, D)
        total = len(everyone) // 2
        own = torch.arange(before, before + count, device=first.device)
        loss: Tensor = _Contrast.apply(
            torch.cat([first, second]),
            everyone,
            torch.cat([own, own + total]),
            torch.cat([own + total, own]),
            None if kin is None else _of_all_processes(kin).repeat(2),
            self.temperature,
        )
        return loss


class _Contrast(torch.autograd.Function):
    """Mean cross-entropy of anchors (M, D) against everyone (K, D), some rows at a time in both directions.

    The M x K similarities never lie in memory together: only the logarithm of each row's sum is kept, and the rows are
    computed again on the way back. All in the precision of the inputs, whatever precision the network runs in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        everyone: Tensor,
        itself: Tensor,
        partner: Tensor,
        kin: Tensor | None,
        temperature: float,
    ) -> Tensor:
        logs = anchors.new_empty(len(anchors))
        for rows in _blocks(len(anchors)):
            near = _similarities(anchors[rows], everyone, itself[rows], partner[rows], kin, temperature)
            logs[rows] = near.logsumexp(dim=1)
        ctx.save_for_backward(anchors, everyone, itself, partner, kin, logs)
        ctx.temperature = temperature
        return (logs - (anchors * everyone[partner]).sum(dim=1) / temperature).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        anchors, everyone, itself, partner, kin, logs = ctx.saved_tensors
        of_anchors, of_everyone = torch.empty_like(anchors), torch.zeros_like(everyone)
        scale = gradient / (len(anchors) * ctx.temperature)
        for rows in _blocks(len(anchors)):
            shares = _similarities(anchors[rows], everyone, itself[rows], partner[rows], kin, ctx.temperature)
            shares = shares.sub_(logs[rows, None]).exp_()
            shares[torch.arange(len(shares), device=shares.device), partner[rows]] -= 1
            shares *= scale
            with torch.autocast(anchors.device.type, enabled=False):
                of_anchors[rows] = shares @ everyone
                of_everyone.addmm_(shares.T, anchors[rows])
        return of_anchors, of_everyone, None, None, None, None


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + CONTRASTED) for start in range(0, count, CONTRASTED)]


def _similarities(
    anchors: Tensor, everyone: Tensor, itself: Tensor, partner: Tensor, kin: Tensor | None, temperature: float
) -> Tensor:
    """(M, K) over the temperature; minus infinity where an anchor meets itself, or its kin (K,) save its partner."""
    with torch.autocast(anchors.device.type, enabled=False):
        similarities = (anchors / temperature) @ everyone.T
    every = torch.arange(len(anchors), device=anchors.device)
    if kin is not None:
        related = kin[itself, None] == kin
        related[every, partner] = False
        similarities.masked_fill_(related, -torch.inf)
    similarities[every, itself] = -torch.inf
    return similarities


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of 2 - 2 cosine between what was predicted (N, D) and the momentum target (N, D), which learns nothing.

    Grill et al. 2020, arXiv 2006.07733, equation 2.
    """
    return (2 - 2 * F.cosine_similarity(_at_least_float32(predicted), _at_least_float32(target.detach()), dim=1)).mean()


def swav_loss(
    first: Tensor, second: Tensor, prototypes: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05
) -> Tensor:
    """Each view must predict to which prototypes (K, D) its partner belongs, in a batch spread evenly over them.

    Caron et al. 2020, arXiv 2006.09882, equations 1 to 3. At ln K nothing is told apart: a lower epsilon,
    which makes the codes sharper, gets away from there.
    """
    first, second, directions = (F.normalize(_at_least_float32(rows), dim=1) for rows in (first, second, prototypes))
    scores = [view @ directions.T for view in (first, second)]  # (N, K) each
    with torch.no_grad():
        codes = [sinkhorn(score, epsilon=epsilon) for score in scores]
    predictions = [F.log_softmax(score / temperature, dim=1) for score in scores]
    losses = [-(codes[one] * predictions[1 - one]).sum(dim=1).mean() for one in (0, 1)]
    return (losses[0] + losses[1]) / 2


def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Soft assignments (N, K) of rows to prototypes, each prototype with the same share of all rows of all processes.

    Sinkhorn and Knopp's alternating normalisation of exp(scores / epsilon); every row sums to 1. In logarithms, since
    exp of a similarity over 0.05 overflows in half precision.
    """
    logs = scores.double() / epsilon
    for _ in range(rounds):
        logs = logs - _logsumexp_over_all_rows(logs)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp().to(scores.dtype)


def gather(rows: Tensor) -> Tensor:
    """The rows (N, D) of every process, (NW, D) in the order of ranks; gradients find their way back to each."""
    return torch.cat(all_gather(rows)) if _distributed() else rows  # type: ignore[no-untyped-call]


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of partners on the unit sphere: 0 where views of one image are the same.

    Wang and Isola 2020, arXiv 2005.10242, section 4.2.
    """
    gaps = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float((gaps**2).sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Logarithm of the mean Gaussian potential of pairs of embeddings (N, D) on the unit sphere: 0 is one point.

    Wang and Isola 2020, arXiv 2005.10242, section 4.1, t = 2. Of more than 4,096 rows, over that many at most, evenly
    spread: pairs grow with the square.
    """
    some = embeddings[:: -(-len(embeddings) // MOST_PAIRED)]
    distances = torch.pdist(F.normalize(some.double(), dim=1))
    return float((-2 * distances**2).exp().mean().log())


def effective_rank(embeddings: Tensor) -> float:
    """How many directions embeddings (N, D) use: the exponential of the entropy of their singular values' shares.

    Around their mean. 1 where everything lies on a line. Roy and Vetterli 2007,
    https://doi.org/10.5281/zenodo.40468 (EUSIPCO, pages 606 to 610).
    """
    values = torch.linalg.svdvals(embeddings.double() - embeddings.double().mean(dim=0))
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values[values > 0] / total
    return float((-(shares * shares.log()).sum()).exp())


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _logsumexp_over_all_rows(logs: Tensor) -> Tensor:
    """Over the rows of every process: (N, K) -> (1, K)."""
    own = logs.logsumexp(dim=0, keepdim=True)
    return _of_all_processes(own).logsumexp(dim=0, keepdim=True)


def _of_all_processes(rows: Tensor) -> Tensor:
    """As `gather`, of what has no gradient."""
    if not _distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0

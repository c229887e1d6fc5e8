"""Evidence of the tiles or patches of an image, added to the logits of the single view; 0 in an untrained module.

Shapes: B images, T instances (tiles or patches), P width of their features, K linear outputs of an instance.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streetvision.models.config import (
    AnyEvidencePoolingConfig,
    GatedAttentionConfig,
    TopKConfig,
)
from streetvision.models.views import evidence_sharpness


class Evidence(NamedTuple):
    """Result of EvidenceFusion for B images."""

    margin: Tensor
    """(B,) is added to the log-odds; 0 for an image without instances."""
    scores: Tensor
    """(B, T) evidence of each instance alone."""
    weights: Tensor
    """(B, T) share of each instance; 0 where masked."""


class EvidenceFusion(nn.Module, ABC):
    """Linear scores of instances, pooled to one number. Fitted by `training.evidence`.

    An instance with the features x has the outputs weight @ x + bias; the first output is its score. A score is 0 in an
    untrained module, so that the fused model is exactly the single view.

    Args:
        config: The pooling.
        instances: T.
        width: P.
    """

    warm_start = True
    """Whether a fit may start from that with a stronger penalty."""

    def __init__(self, config: AnyEvidencePoolingConfig, instances: int, width: int) -> None:
        super().__init__()
        self.config, self.instances = config, instances
        outputs = self.outputs(config)
        self.weight = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @staticmethod
    def outputs(config: AnyEvidencePoolingConfig) -> int:  # noqa: ARG004
        """Return K."""
        return 1

    def forward(self, features: Tensor, mask: Tensor) -> Evidence:
        """Pool instances.

        Args:
            features: (B, T, P), which get a LayerNorm without parameters.
            mask: (B, T), False for instances that do not count; their features may be NaN.
        """
        features = torch.where(mask[..., None], features, 0).to(self.weight.dtype)
        return self.pool(F.layer_norm(features, features.shape[-1:]), mask)

    def pool(self, inputs: Tensor, mask: Tensor) -> Evidence:
        """Pool instances whose features (B, T, P) are normalized."""
        outputs = inputs @ self.weight.T + self.bias
        some = mask.any(dim=1)
        # Without any instance, all of them are kept here, so that no result is NaN; the evidence is then 0.
        margin, weights = self.pooled(outputs, mask | ~some[:, None])
        return Evidence(torch.where(some, margin, 0), outputs[..., 0], weights * mask)

    @abstractmethod
    def pooled(self, outputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool outputs (B, T, K) with a mask (B, T) that has an instance for each image to evidence and weights."""

    def weight_penalty(self) -> Tensor:
        """Return a penalty in addition to that of the weights of the score."""
        return self.weight.new_zeros(())


class LseEvidence(EvidenceFusion):
    """log(mean of exp(beta * score)) / beta, with beta = log(T).

    References:
        Ramon and De Raedt 2000, Multi Instance Neural Networks, section 3.
    """

    def pooled(self, outputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool outputs (B, T, 1) with a mask (B, T)."""
        beta = evidence_sharpness(self.instances)
        scaled = (beta * outputs[..., 0]).masked_fill(~mask, -torch.inf)
        counts = mask.sum(dim=1).to(scaled.dtype)
        return (scaled.logsumexp(dim=1) - counts.log()) / beta, scaled.softmax(dim=1)


class TopKEvidence(EvidenceFusion):
    """The mean of the k largest scores; scores that equal the k-th one count, too."""

    def pooled(self, outputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool outputs (B, T, 1) with a mask (B, T)."""
        assert isinstance(self.config, TopKConfig)
        scores = outputs[..., 0].masked_fill(~mask, -torch.inf)
        smallest = scores.topk(min(self.config.k, scores.shape[1]), dim=1).values[:, -1:]
        kept = mask & (scores >= smallest)
        weights = kept / kept.sum(dim=1, keepdim=True)
        return (weights * torch.where(kept, scores, 0)).sum(dim=1), weights


class GatedAttentionEvidence(EvidenceFusion):
    """The mean of the scores, weighted by the softmax of attention @ (tanh(V @ x) * sigmoid(U @ x)).

    References:
        Ilse, Tomczak and Welling 2018, arXiv 1802.04712, equation 9.
    """

    warm_start = False  # a strong penalty makes the attention uniform, where it has no gradient

    def __init__(self, config: AnyEvidencePoolingConfig, instances: int, width: int) -> None:
        super().__init__(config, instances, width)
        assert isinstance(config, GatedAttentionConfig)
        self.attention = nn.Parameter(torch.randn(config.hidden) * config.hidden**-0.5)
        with torch.no_grad():
            self.weight[1:].normal_(std=width**-0.5)

    @staticmethod
    def outputs(config: AnyEvidencePoolingConfig) -> int:
        """Return K: the score, and the two hidden layers."""
        assert isinstance(config, GatedAttentionConfig)
        return 1 + 2 * config.hidden

    def pooled(self, outputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool outputs (B, T, K) with a mask (B, T)."""
        content, gate = outputs[..., 1:].chunk(2, dim=-1)
        attention = (content.tanh() * gate.sigmoid()) @ self.attention
        weights = attention.masked_fill(~mask, -torch.inf).softmax(dim=1)
        return (weights * outputs[..., 0]).sum(dim=1), weights

    def weight_penalty(self) -> Tensor:
        """Return the weight decay of the attention."""
        assert isinstance(self.config, GatedAttentionConfig)
        return self.config.weight_decay * (self.weight[1:].square().sum() + self.attention.square().sum())


EVIDENCE: Mapping[str, type[EvidenceFusion]] = MappingProxyType(
    {"lse": LseEvidence, "top_k": TopKEvidence, "gated_attention": GatedAttentionEvidence}
)
"""phase4c.pooling.name -> the class that pools evidence."""

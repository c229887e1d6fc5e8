"""The anchor of phase 4a: features of unchanged images stay near those of the original backbone.

Shapes: M images, L blocks, K poolings, D the width of a token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streetvision.models.module import Classifier
from streetvision.models.pooling import Pooling

IMAGES_PER_ANCHOR = 4
"""Images of a batch for each image that the anchor draws; so its cost is an eighth of that of the views."""


@dataclass(frozen=True)
class Anchor:
    """Unchanged images with the features that the original backbone gives them."""

    images: Tensor
    """uint8 (M, 3, h, w), on the CPU."""
    features: Tensor
    """float32 (M, L * K * D), as `pooling` orders them."""
    pooling: Pooling
    """What the classifier may read: poolings of the last L blocks."""
    layers: int
    """L."""
    seed: int
    """Seed of the draws."""

    def distance(
        self, classifier: Classifier, *, n: int, step: tuple[int, int], rank_and_world_size: tuple[int, int]
    ) -> Tensor:
        """Return the mean cosine distance of a random part of the images, over blocks and poolings, as a scalar.

        Args:
            classifier: Its backbone is compared with the original one.
            n: Images of this process in the batch; a quarter as many are compared.
            step: Epoch and batch, which determine the draw.
            rank_and_world_size: This process takes its share of the draw.
        """
        rank, world_size = rank_and_world_size
        count = max(1, n // IMAGES_PER_ANCHOR) * world_size
        generator = torch.Generator().manual_seed(hash((self.seed, *step)) % 2**63)
        drawn = torch.randint(len(self.images), (count,), generator=generator)[rank::world_size]
        images = self.images[drawn].to(classifier.mean.device)
        tokens = classifier.backbone((images - classifier.mean) / classifier.std, self.layers)
        shape = (count // world_size, -1, classifier.backbone.spec.embed_dim)
        features = self.pooling(tokens).float().view(shape)
        original = self.features[drawn].to(features.device).view(shape)
        return 1 - F.cosine_similarity(features, original, dim=2).mean()

"""A classifier that fuses many views of an image: the same object in a run and in a bundle.

Shapes: B images, V views, C classes, P width of a view's features, T patches of a dense pass, Q width of a patch's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.resize import Box, ImageSize
from streetvision.io.tensors import load_into, load_state
from streetvision.models.config import FusionConfig, FusionDescription
from streetvision.models.evidence import EVIDENCE, EvidenceFusion
from streetvision.models.fusion import InferenceCVFM, TrainableCVFM, influence, single_view
from streetvision.models.module import N_CLASSES, Classifier, ImageClassifier
from streetvision.models.multi_view import EmbeddedViews, Views, content_fraction, make_views, map_views
from streetvision.models.preprocessing import input_decode_size
from streetvision.models.views import (
    VIEW_CHUNK_SIZE,
    check_dense_size,
    patch_grid,
    patch_mask,
    plan_patches,
    plan_views,
    views_per_image,
)


class FusionOutput(NamedTuple):
    """Result of a fusion, with its inputs and weights, for B images."""

    logits: Tensor
    """(B, C) fused."""
    view_logits: Tensor
    """(B, V, C) of each single view; of a dense pass (B, 1 + T, C): the single view, then the logits that each patch
    would give if all patches had its evidence."""
    weights: Tensor
    """(B, V) or (B, 1 + T): influence of each view on the fused logits; 0 where masked."""
    mask: Tensor
    """The same shape; False for a view that does not count."""


class FusedClassifier(nn.Module):
    """A classifier on views, whose backbone and head are those of `classifier`.

    Args:
        classifier: Computes features and logits of each view.
        description: How images are split into views and how these are fused.
        chunk_size: Views per forward pass of the backbone.
    """

    def __init__(
        self, classifier: ImageClassifier, description: FusionDescription, *, chunk_size: int = VIEW_CHUNK_SIZE
    ) -> None:
        super().__init__()
        self.classifier, self.description, self.chunk_size = classifier, description, chunk_size
        self.image_size = classifier.description.image_size
        self.dense = None
        if description.dense_size is not None:
            check_dense_size(description.dense_size, self.image_size)
            assert isinstance(classifier, Classifier), "a dense pass needs the PyTorch classifier"
            self.dense = classifier.patches_at(description.dense_size)
        self.fusion: InferenceCVFM | TrainableCVFM | EvidenceFusion
        if description.trained is not None:
            assert description.views is not None
            self.fusion = TrainableCVFM(description.views, classifier.width, N_CLASSES, description.trained)
        elif description.pooling is not None:
            size = (description.tiles, classifier.width) if self.dense is None else (self.dense.count, self.dense.width)
            self.fusion = EVIDENCE[description.pooling.name](description.pooling, *size)
        else:
            self.fusion = InferenceCVFM(description.inference or FusionConfig())

    @property
    def views_per_image(self) -> int:
        """Number of views of one image; a dense pass counts as the views that have as many pixels."""
        return views_per_image(self.description, self.image_size)

    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image before `prepare`."""
        return input_decode_size(image, self.classifier.description, self.description)

    def prepare(self, image: Tensor) -> Views:
        """Split a decoded image, uint8 (3, H, W), into views."""
        description = self.description
        return make_views(image, description.views, image_size=self.image_size, dense_size=description.dense_size)

    def embed(self, views: Views) -> EmbeddedViews:
        """Map the views of B images to features."""
        features = map_views(self.classifier.embed, views.pixels, views.mask, chunk_size=self.chunk_size)
        content = content_fraction(views.content, self.image_size)
        if self.dense is None:
            return EmbeddedViews(features, views.mask, content, features[:, :0], views.mask[:, :0])
        size = self.description.dense_size
        assert size is not None
        grid = patch_grid(size, self.dense.count)
        inside = torch.from_numpy(patch_mask(views.dense_content[:, 0].cpu().numpy(), size, grid))
        return EmbeddedViews(features, views.mask, content, self.dense(views.dense[:, 0]), inside.to(features.device))

    def instances(self, views: EmbeddedViews) -> tuple[Tensor, Tensor]:
        """Return the features (B, T, P) that evidence is pooled over, of tiles or patches, and their mask (B, T)."""
        if self.dense is None:
            return views.features[:, 1:], views.mask[:, 1:]
        return views.patches, views.patch_mask

    def fuse(self, views: EmbeddedViews) -> Tensor:
        """Fuse the views of B images to logits (B, C)."""
        return self._details(views).logits

    def forward(self, views: Views) -> Tensor:
        """Map the views of B images to fused logits (B, C)."""
        return self.fuse(self.embed(views))

    def forward_details(self, views: Views) -> FusionOutput:
        """Return the fused logits together with the logits and the influence of each view."""
        embedded = self.embed(views)
        details = self._details(embedded)
        if isinstance(self.fusion, InferenceCVFM):
            weights = influence(details.view_logits, embedded.mask, embedded.content, self.fusion.config)
            return details._replace(weights=weights)
        return details

    def _details(self, views: EmbeddedViews) -> FusionOutput:
        """The result of the fusion; without the influence of the views if the fusion has no parameters."""
        features, mask, content, _, patch_mask = views
        logits: Tensor = self.classifier.head(features)
        if isinstance(self.fusion, InferenceCVFM):
            return FusionOutput(self.fusion(logits, mask, content), logits, mask.to(logits.dtype), mask)
        if isinstance(self.fusion, TrainableCVFM):
            output = self.fusion(features, logits, mask, content)
            return FusionOutput(output.logits, logits, output.weights, mask)
        whole = single_view(logits, mask)
        evidence = self.fusion(*self.instances(views))
        fused = add_margin(whole, evidence.margin)
        weights = torch.cat([mask[:, :1].to(evidence.weights.dtype), evidence.weights], dim=1)
        if self.dense is not None:
            logits = torch.cat([logits, add_margin(whole[:, None], evidence.scores)], dim=1)
            mask = torch.cat([mask, patch_mask], dim=1)
        return FusionOutput(fused, logits, weights, mask)

    def boxes(self, height: int, width: int) -> list[Box]:
        """Return the position of each view of `forward_details` in an image of H x W pixels."""
        boxes = plan_views(height, width, self.description.views)
        if self.dense is None or self.description.dense_size is None:
            return boxes
        return boxes + plan_patches(height, width, self.description.dense_size, self.dense.count)


def add_margin(logits: Tensor, margin: Tensor) -> Tensor:
    """Add a margin (...) to the log-odds of logits (..., 2), whose mean does not change."""
    return logits + torch.stack([-margin / 2, margin / 2], dim=-1)


Model: TypeAlias = ImageClassifier | FusedClassifier
"""Maps prepared images to logits, with or without a fusion of views."""


def images_per_batch(model: Model, batch_size: int) -> int:
    """Return the number of images that have about `batch_size` views in total; at least one."""
    return max(1, batch_size // model.views_per_image)


def load_fused(
    classifier: ImageClassifier,
    description: FusionDescription,
    weights: Path | None,
    *,
    chunk_size: int = VIEW_CHUNK_SIZE,
) -> FusedClassifier:
    """Load a classifier with fusion, in eval mode.

    Args:
        classifier: Computes features and logits of each view.
        description: The fusion.
        weights: File with the state dict of the fusion; None for a fusion without parameters.
        chunk_size: Views per forward pass of the backbone.

    Raises:
        ArtifactError: `description` and `weights` do not belong together.
    """
    if description.has_weights != (weights is not None):
        problem = "has no weights, but a file is given" if weights else "needs weights, but no file is given"
        raise ArtifactError(f"fusion mode {description.mode} {problem}")
    state = {} if weights is None else load_state(weights)
    # Checked before the module is built, because an untrusted description may ask for any size.
    if description.pooling is not None:
        outputs = EVIDENCE[description.pooling.name].outputs(description.pooling)
        width = classifier.width
        if description.dense_size is not None:
            assert isinstance(classifier, Classifier)
            width = classifier.backbone.spec.embed_dim
        _check_shape(state, "weight", (outputs, width), source=str(weights))
    if description.trained is not None:
        expected = (1 + description.tiles, description.trained.latent_dim, classifier.width)
        _check_shape(state, "decoders", expected, source=str(weights))
    fused = FusedClassifier(classifier, description, chunk_size=chunk_size).eval()
    if weights is not None:
        load_into(fused.fusion, state, source=str(weights))
    return fused


def _check_shape(state: Mapping[str, Tensor], name: str, expected: tuple[int, ...], *, source: str) -> None:
    actual = tuple(state[name].shape) if name in state else None
    if actual != expected:
        raise ArtifactError(f"{source!r} does not fit: {name} {actual}, expected {expected}", "export the bundle again")

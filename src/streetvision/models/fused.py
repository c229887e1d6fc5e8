"""A classifier that fuses many views of an image: the same object in a run and in a bundle.

Shapes: B images, V views, C classes, P width of a view's features.
"""

from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.tensors import load_into, load_state
from streetvision.models.config import FusionConfig, FusionDescription
from streetvision.models.fusion import EvidenceFusion, InferenceCVFM, TrainableCVFM, influence
from streetvision.models.module import N_CLASSES, ImageClassifier
from streetvision.models.multi_view import Views, content_fraction, make_views, map_views
from streetvision.models.views import VIEW_CHUNK_SIZE


class FusionOutput(NamedTuple):
    """Result of a fusion, with its inputs and weights, for B images."""

    logits: Tensor
    """(B, C) fused."""
    view_logits: Tensor
    """(B, V, C) of each single view."""
    weights: Tensor
    """(B, V) influence of each view on the fused logits; 0 where masked."""


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
        self.fusion: InferenceCVFM | TrainableCVFM | EvidenceFusion
        if description.trained is not None:
            self.fusion = TrainableCVFM(description.views, classifier.width, N_CLASSES, description.trained)
        elif description.mode == "mil":
            self.fusion = EvidenceFusion(description.views, classifier.width)
        else:
            self.fusion = InferenceCVFM(description.inference or FusionConfig())

    @property
    def views_per_image(self) -> int:
        """Number of views that one image is split into."""
        return self.description.views.count

    def prepare(self, image: Tensor) -> Views:
        """Split a decoded image, uint8 (3, H, W) at full resolution, into views."""
        return make_views(image, self.description.views, image_size=self.classifier.description.image_size)

    def embed(self, views: Views) -> Tensor:
        """Map the views of B images to features (B, V, P)."""
        return map_views(self.classifier.embed, views.pixels, views.mask, chunk_size=self.chunk_size)

    def content(self, views: Views) -> Tensor:
        """Return the fraction of each view that is not padding (B, V)."""
        return content_fraction(views.content, self.classifier.description.image_size)

    def fuse(self, features: Tensor, mask: Tensor, content: Tensor) -> Tensor:
        """Fuse features (B, V, P) with mask (B, V) and content (B, V) to logits (B, C)."""
        logits: Tensor = self.classifier.head(features)
        fused: Tensor
        if isinstance(self.fusion, InferenceCVFM):
            fused = self.fusion(logits, mask, content)
        else:
            fused = self.fusion(features, logits, mask, content).logits
        return fused

    def forward(self, views: Views) -> Tensor:
        """Map the views of B images to fused logits (B, C)."""
        return self.fuse(self.embed(views), views.mask, self.content(views))

    def forward_details(self, views: Views) -> FusionOutput:
        """Return the fused logits together with the logits and the influence of each view."""
        features, mask, content = self.embed(views), views.mask, self.content(views)
        logits: Tensor = self.classifier.head(features)
        if isinstance(self.fusion, InferenceCVFM):
            weights = influence(logits, mask, content, self.fusion.config)
            return FusionOutput(self.fusion(logits, mask, content), logits, weights)
        output = self.fusion(features, logits, mask, content)
        return FusionOutput(output.logits, logits, output.weights)


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
    if description.mode == "mil" and ("weight" not in state or state["weight"].shape != (classifier.width,)):
        actual = tuple(state["weight"].shape) if "weight" in state else None
        raise ArtifactError(f"{str(weights)!r} does not fit: weight {actual}, expected {(classifier.width,)}")
    if description.trained is not None:
        # Checked before the module is built, because an untrusted description may ask for any size.
        expected = (description.views.count, description.trained.latent_dim, classifier.width)
        actual = tuple(state["decoders"].shape) if "decoders" in state else None
        if actual != expected:
            raise ArtifactError(f"{str(weights)!r} does not fit: decoders {actual}, expected {expected}")
    fused = FusedClassifier(classifier, description, chunk_size=chunk_size).eval()
    if weights is not None:
        load_into(fused.fusion, state, source=str(weights))
    return fused

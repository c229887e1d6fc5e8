"""A classifier that looks at many views of an image and fuses what it sees: the same object in a run and in a bundle.

Legend: B images, V views, C classes, P width of a view's features.
"""

from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.tensors import load_into, load_state
from streetvision.models.config import FusionConfig, FusionDescription
from streetvision.models.fusion import InferenceCVFM, TrainableCVFM, influence
from streetvision.models.module import N_CLASSES, ImageClassifier
from streetvision.models.multi_view import Views, content_share, make_views, over_views

VIEWS_AT_ONCE = 64
"""Views that go through the backbone together, which bounds the memory of a forward pass. More are slower on a CPU,
where the system hands out large blocks anew each time."""


class FusionOutput(NamedTuple):
    """What was seen in the views of B images."""

    logits: Tensor
    """(B, C) fused."""
    view_logits: Tensor
    """(B, V, C) of each view by itself."""
    weights: Tensor
    """(B, V) how much each view counted; 0 where masked."""


class FusedClassifier(nn.Module):
    """Views in, fused logits out; backbone and head are the classifier's own."""

    def __init__(
        self, classifier: ImageClassifier, description: FusionDescription, *, at_once: int = VIEWS_AT_ONCE
    ) -> None:
        super().__init__()
        self.classifier, self.description, self.at_once = classifier, description, at_once
        self.fusion: InferenceCVFM | TrainableCVFM
        if description.trained is None:
            self.fusion = InferenceCVFM(description.inference or FusionConfig())
        else:
            self.fusion = TrainableCVFM(description.views, classifier.width, N_CLASSES, description.trained)

    @property
    def views_per_image(self) -> int:
        """Views that one image is cut into."""
        return self.description.views.count

    def prepare(self, image: Tensor) -> Views:
        """uint8 (3, H, W) at full resolution -> its views."""
        return make_views(image, self.description.views, image_size=self.classifier.description.image_size)

    def embed(self, views: Views) -> Tensor:
        """Views of B images -> features (B, V, P), all through the backbone together."""
        return over_views(self.classifier.embed, views.pixels, views.mask, at_once=self.at_once)

    def content(self, views: Views) -> Tensor:
        """The share of each view that is not padding (B, V)."""
        return content_share(views.content, self.classifier.description.image_size)

    def fuse(self, features: Tensor, mask: Tensor, content: Tensor) -> Tensor:
        """Features (B, V, P), mask (B, V) and content (B, V) -> fused logits (B, C)."""
        logits: Tensor = self.classifier.head(features)
        if isinstance(self.fusion, TrainableCVFM):
            learnt: Tensor = self.fusion(features, logits, mask, content).logits
            return learnt
        fused: Tensor = self.fusion(logits, mask, content)
        return fused

    def forward(self, views: Views) -> Tensor:
        """Views of B images -> fused logits (B, C)."""
        return self.fuse(self.embed(views), views.mask, self.content(views))

    def look(self, views: Views) -> FusionOutput:
        """The same with what each view said, and how much it counted."""
        features, mask, content = self.embed(views), views.mask, self.content(views)
        logits: Tensor = self.classifier.head(features)
        if isinstance(self.fusion, TrainableCVFM):
            found = self.fusion(features, logits, mask, content)
            return FusionOutput(found.logits, logits, found.weights)
        weights = influence(logits, mask, content, self.fusion.config)
        return FusionOutput(self.fusion(logits, mask, content), logits, weights)


Model: TypeAlias = ImageClassifier | FusedClassifier
"""What makes logits of prepared images, with or without a fusion of views."""


def images_at_once(model: Model, batch_size: int) -> int:
    """Images of which `batch_size` views are made; at least one."""
    return max(1, batch_size // model.views_per_image)


def load_fused(
    classifier: ImageClassifier, description: FusionDescription, weights: Path | None, *, at_once: int = VIEWS_AT_ONCE
) -> FusedClassifier:
    """The classifier with the fusion that `description` and the file `weights` make up, in eval mode.

    Raises ArtifactError when the two do not belong together.
    """
    if (description.trained is None) != (weights is None):
        raise ArtifactError(f"mode {description.mode} has {'no weights' if weights else 'weights'}, against what came")
    state = {} if weights is None else load_state(weights)
    if description.trained is not None:
        # Before anything as large as the description says is made: it may come from anywhere.
        expected = (description.views.count, description.trained.latent_dim, classifier.width)
        found = tuple(state["decoders"].shape) if "decoders" in state else None
        if found != expected:
            raise ArtifactError(f"{str(weights)!r} does not fit: decoders {found}, expected {expected}")
    fused = FusedClassifier(classifier, description, at_once=at_once).eval()
    if weights is not None:
        load_into(fused.fusion, state, source=str(weights))
    return fused

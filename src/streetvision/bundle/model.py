"""The interface between a predictor and its model, which is the same for every runtime. Does not import torch.

Shapes: H, W pixels of an image; h, w pixels of the model's input; B images, V views, P width of the features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from streetvision.data.image_file import DecodedImage, Pixels
from streetvision.io.resize import Box, ImageSize
from streetvision.models.views import ViewArrays

SINGLE_VIEW = "single_view"
Logits: TypeAlias = NDArray[np.float32]
Prepared: TypeAlias = NDArray[np.uint8] | ViewArrays
"""One image as the model takes it: uint8 (3, h, w), or its views."""


@dataclass(frozen=True)
class ModelOutput:
    """Result of a model for B images."""

    logits: Logits
    """(B, 2)."""
    features: NDArray[np.float32]
    """(B, P) of the whole image, before any fusion of views."""


@dataclass(frozen=True)
class ViewLogits:
    """The logits of one image with those of its views; masked views are left out."""

    logits: Logits
    """(2,) after fusion."""
    boxes: tuple[Box, ...]
    """Position of each view in the image before it was reduced, the whole image first."""
    view_logits: Logits
    """(V, 2) of each single view."""
    weights: NDArray[np.float32]
    """(V,) influence of each view on the fused logits."""


class BundleModel(ABC):
    """The model of a bundle in some runtime: decoded images -> logits, before calibration."""

    inference = SINGLE_VIEW
    """Inference mode: single_view, or the mode of the fusion of views."""
    views_per_image = 1
    """Number of views that one image is split into."""

    @abstractmethod
    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image of H x W pixels before `prepare`."""

    @abstractmethod
    def prepare(self, pixels: Pixels) -> Prepared:
        """Resize a decoded image, uint8 (H, W, 3), or split it into views. Any number of threads may call."""

    @abstractmethod
    def outputs(self, images: Sequence[Prepared]) -> ModelOutput:
        """Return logits and features of prepared images in one batch."""

    def logits(self, images: Sequence[Prepared]) -> Logits:
        """Return the logits (B, 2) of prepared images in one batch."""
        return self.outputs(images).logits

    @abstractmethod
    def view_logits(self, image: DecodedImage) -> ViewLogits:
        """Return the logits of an image and of each of its views; for a single view both are the same."""

    @abstractmethod
    def with_single_view(self) -> "BundleModel":
        """Return the same model without its fusion of views."""

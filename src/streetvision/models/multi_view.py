"""The views of one image: the whole image, and overlapping tiles at a higher resolution or a larger copy (dense pass).

Shapes: H, W pixels of the image; h, w pixels of a view; H', W' pixels of the dense pass; B images, V views, M views
that are not masked, T patches of the dense pass, P width of a view's features, Q width of a patch's.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from streetvision.io.resize import ImageSize, fit_box
from streetvision.io.resize_tensor import fit_tensor
from streetvision.models.config import ViewsConfig
from streetvision.models.views import plan_views


class Views(NamedTuple):
    """The views of one image: first the global view, then the tiles row by row."""

    pixels: Tensor
    """uint8 (V, 3, h, w): each view is resized like a whole image (`fit_box`); the first one is the single view."""
    content: Tensor
    """int64 (V, 4): left, top, right, bottom of the part that is not padding, in pixels of the view."""
    mask: Tensor
    """bool (V,): False for a view with the same box as an earlier one; its pixels are black."""
    dense: Tensor
    """uint8 (D, 3, H', W'): the image at the size of the dense pass; D = 0 without one."""
    dense_content: Tensor
    """int64 (D, 4): the part of the dense pass that is not padding, in its pixels, as in `content`."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Views":
        """Return the same views on another device."""
        return Views(*(part.to(device, non_blocking=non_blocking) for part in self))


class EmbeddedViews(NamedTuple):
    """Features of the views of B images."""

    features: Tensor
    """(B, V, P); 0 where masked."""
    mask: Tensor
    """bool (B, V), as in `Views`."""
    content: Tensor
    """(B, V): the fraction of each view that is not padding."""
    patches: Tensor
    """(B, T, Q) of the dense pass; T = 0 without one."""
    patch_mask: Tensor
    """bool (B, T): False for patches of padding."""


def make_views(
    image: Tensor, config: ViewsConfig | None, *, image_size: ImageSize, dense_size: ImageSize | None = None
) -> Views:
    """Split an image, uint8 (3, H, W), into views of h, w = image_size.

    Args:
        image: The image.
        config: The tiles; None: the whole image is the only view.
        image_size: h, w.
        dense_size: H', W'; None: no dense pass.
    """
    _, height, width = image.shape
    boxes = plan_views(height, width, config)
    pixels = torch.zeros(len(boxes), 3, *image_size, dtype=torch.uint8)
    content = torch.zeros(len(boxes), 4, dtype=torch.int64)
    # In a small image several tiles have the same box; only the first one counts.
    mask = torch.tensor([box not in boxes[:index] for index, box in enumerate(boxes)])
    for index, box in enumerate(boxes):
        if mask[index]:
            pixels[index] = fit_tensor(image[:, box.top : box.bottom, box.left : box.right], image_size)
            content[index] = torch.tensor(fit_box(box.size, image_size))
    if dense_size is None:
        return Views(pixels, content, mask, pixels.new_zeros(0, 3, 0, 0), content[:0])
    dense_content = torch.tensor([fit_box((height, width), dense_size)])
    return Views(pixels, content, mask, fit_tensor(image, dense_size)[None], dense_content)


def content_fraction(content: Tensor, image_size: ImageSize) -> Tensor:
    """Return the fraction of each view that is not padding (...).

    Args:
        content: Boxes (..., 4), as in `Views.content`.
        image_size: h, w.
    """
    left, top, right, bottom = content.unbind(-1)
    return (right - left) * (bottom - top) / (image_size[0] * image_size[1])


def map_views(function: Callable[[Tensor], Tensor], pixels: Tensor, mask: Tensor, *, chunk_size: int) -> Tensor:
    """Apply a function to the views of all images.

    Args:
        function: A map from images (M, 3, h, w) to (M, ...).
        pixels: Views (B, V, 3, h, w).
        mask: (B, V); the function is not called on masked views.
        chunk_size: Largest number of views per call.

    Returns:
        (B, V, ...), which is 0 for masked views.
    """
    values = torch.cat([function(chunk) for chunk in torch.split(pixels[mask], chunk_size)])
    result = values.new_zeros(*mask.shape, *values.shape[1:])
    result[mask] = values
    return result

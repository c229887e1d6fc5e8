"""Many views of one image: the whole of it, and overlapping tiles from its full resolution.

Legend: H, W pixels of the image; S pixels a side of a view; B images, V views, M views that hold something.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from streetvision.models.config import ViewsConfig


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are the first column and row outside."""

    left: int
    top: int
    right: int
    bottom: int


class Views(NamedTuple):
    """The views of one image, the global one first, then the tiles row by row."""

    pixels: Tensor
    """uint8 (V, 3, S, S): each view at its own aspect ratio, in the middle of black."""
    content: Tensor
    """int64 (V, 4): left, top, right, bottom of what is not padding, in the view's own pixels."""
    mask: Tensor
    """bool (V,): False where a view holds nothing that an earlier one does not hold; it is black."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Views":
        """The same views on another device."""
        return Views(*(part.to(device, non_blocking=non_blocking) for part in self))


def plan_views(height: int, width: int, config: ViewsConfig) -> list[Box]:
    """Where each view lies in an image of H x W pixels; the tiles cover every pixel, whatever the size."""
    tops = _spans(height, config.rows, config.overlap)
    lefts = _spans(width, config.columns, config.overlap)
    tiles = [Box(left, top, right, bottom) for top, bottom in tops for left, right in lefts]
    return [Box(0, 0, width, height), *tiles]


def make_views(image: Tensor, config: ViewsConfig, *, image_size: int) -> Views:
    """uint8 (3, H, W) -> its views at S = image_size."""
    _, height, width = image.shape
    boxes = plan_views(height, width, config)
    pixels = torch.zeros(len(boxes), 3, image_size, image_size, dtype=torch.uint8)
    content = torch.zeros(len(boxes), 4, dtype=torch.int64)
    mask = torch.tensor([box not in boxes[:number] for number, box in enumerate(boxes)])
    for number, box in enumerate(boxes):
        if mask[number]:
            inner = _fit(box, image_size)
            cut = image[:, box.top : box.bottom, box.left : box.right]
            pixels[number, :, inner.top : inner.bottom, inner.left : inner.right] = _resize(cut, inner)
            content[number] = torch.tensor(inner)
    return Views(pixels, content, mask)


def content_share(content: Tensor, image_size: int) -> Tensor:
    """Boxes (..., 4) in views of image_size pixels a side -> the share of each view that is not padding (...)."""
    left, top, right, bottom = content.unbind(-1)
    return (right - left) * (bottom - top) / image_size**2


def over_views(function: Callable[[Tensor], Tensor], pixels: Tensor, mask: Tensor, *, at_once: int) -> Tensor:
    """`function`, a map from images (M, 3, S, S) to (M, ...), of all views (B, V, 3, S, S): (B, V, ...).

    All views of all images go through it together, `at_once` of them at the most; masked views are not looked at, and
    are 0 in the result.
    """
    found = torch.cat([function(part) for part in torch.split(pixels[mask], at_once)])
    result = found.new_zeros(*mask.shape, *found.shape[1:])
    result[mask] = found
    return result


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` equal spans from 0 to `length` that each share at least `overlap` of themselves with the next."""
    size = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    starts = [round(number * (length - size) / max(count - 1, 1)) for number in range(count)]
    return [(start, start + size) for start in starts]


def _fit(box: Box, image_size: int) -> Box:
    """Where the content of `box` lies in a square view: as large as it goes, in the middle, undistorted."""
    height, width = box.bottom - box.top, box.right - box.left
    scale = image_size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image_size - inner_width) // 2, (image_size - inner_height) // 2
    return Box(left, top, left + inner_width, top + inner_height)


def _resize(cut: Tensor, inner: Box) -> Tensor:
    size = [inner.bottom - inner.top, inner.right - inner.left]
    resized: Tensor = F.resize(cut, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized

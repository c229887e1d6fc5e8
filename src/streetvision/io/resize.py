"""Fit decoded images into the model's input with Pillow, and its geometry. Does not import torch.

`resize_tensor` does the same with torch, which is faster; it rounds some pixels differently, by 1.
Shapes: H, W pixels of an image; h, w pixels of the model's input.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageSize: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
DecodeSize: TypeAlias = Callable[[ImageSize], ImageSize]
"""Size of an image -> the smallest size to which a decoder may reduce it."""
DECODE_MARGIN = 1.15
"""Pixels per side of a reduced image relative to what it is resized to, at least. With less, pixels and
probabilities change more: `scripts/measure_reduced_decoding.py`; a head fitted on such images is as good."""
MAX_STRETCH = 2.0
"""Largest change of an image's aspect ratio by a resize. An image of a more different aspect ratio is padded."""


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> ImageSize:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


def as_size(size: int | ImageSize) -> ImageSize:
    """Return height and width; a number is the side of a square."""
    return (size, size) if isinstance(size, int) else size


def fit_box(image: ImageSize, size: ImageSize) -> Box:
    """Return the part of the model's input that an image fills; the rest is padding, equal on both sides.

    The aspect ratio changes by at most MAX_STRETCH.

    Args:
        image: H, W.
        size: h, w.
    """
    (height, width), (full_height, full_width) = image, size
    # How much wider the input is than the image, at equal heights.
    stretch = full_width * height / (full_height * width)
    inner_height, inner_width = full_height, full_width
    if stretch > MAX_STRETCH:
        inner_width = max(1, round(full_width * MAX_STRETCH / stretch))
    elif stretch < 1 / MAX_STRETCH:
        inner_height = max(1, round(full_height * MAX_STRETCH * stretch))
    left, top = (full_width - inner_width) // 2, (full_height - inner_height) // 2
    return Box(left, top, left + inner_width, top + inner_height)


def decode_size(image: ImageSize, part: tuple[float, float], target: ImageSize) -> ImageSize:
    """Return the smallest size to which an image may be reduced before a part of it is resized.

    Args:
        image: H, W.
        part: Height and width of the part, in pixels of the image.
        target: Height and width to which the part is resized.
    """
    height, width = (
        min(side, math.ceil(DECODE_MARGIN * pixels * side / length))
        for side, length, pixels in zip(image, part, target, strict=True)
    )
    return height, width


def resize_pixels(pixels: NDArray[np.uint8], size: ImageSize) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to (3, h, w), bilinear with antialiasing."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def fit_pixels(pixels: NDArray[np.uint8], size: ImageSize) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to the model's input (3, h, w), with black padding where `fit_box` asks for it."""
    height, width, _ = pixels.shape
    box = fit_box((height, width), size)
    if box.size == size:
        return resize_pixels(pixels, size)
    padded = np.zeros((3, *size), dtype=np.uint8)
    padded[:, box.top : box.bottom, box.left : box.right] = resize_pixels(pixels, box.size)
    return padded

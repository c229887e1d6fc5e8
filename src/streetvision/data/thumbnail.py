"""Small JPEGs of images, for HTML pages. Does not import torch."""

import io
import math
from pathlib import Path

from PIL import Image

from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import Pixels, read_file
from streetvision.io.resize import ImageSize

THUMBNAIL_PIXELS = 240


def thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    """Return a JPEG of the image file, at most 240 pixels per side.

    Raises:
        UndecodableImage: The file cannot be decoded.
    """
    return smaller_jpeg(path, THUMBNAIL_PIXELS, limits)


def smaller_jpeg(path: Path, max_side: int, limits: DecodeLimits) -> bytes:
    """Return a JPEG of the image file, at most `max_side` pixels per side.

    A large JPEG is reduced while it is decoded, to this size or more.

    Raises:
        UndecodableImage: The file cannot be decoded.
    """

    def least_size(size: ImageSize) -> ImageSize:
        scale = min(1.0, max_side / max(size))
        return math.ceil(scale * size[0]), math.ceil(scale * size[1])

    pixels = read_file(path, limits=limits, decode_size=least_size).pixels
    return encode_jpeg(shrink(pixels, max_side))


def shrink(pixels: Pixels, max_side: int) -> Image.Image:
    """Reduce uint8 (H, W, 3) to at most `max_side` pixels per side; the aspect ratio does not change."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side))
    return image


def encode_jpeg(image: Image.Image) -> bytes:
    """Return a JPEG of medium quality."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

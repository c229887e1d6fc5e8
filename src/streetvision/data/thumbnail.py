"""Small JPEGs of images, for HTML pages. Does not import torch."""

import io
from pathlib import Path

from PIL import Image

from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import Pixels, read_pixels

THUMBNAIL_PIXELS = 240


def thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    """Return a JPEG of the image file, at most 240 pixels per side.

    Raises:
        UndecodableImage: The file cannot be decoded.
    """
    return encode_jpeg(shrink(read_pixels(path, limits=limits), THUMBNAIL_PIXELS))


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

"""Small JPEGs of images, for HTML pages."""

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_image

THUMBNAIL_PIXELS = 240


def thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    """Return a JPEG of the image file, at most 240 pixels per side.

    Raises:
        UndecodableImage: The file cannot be decoded.
    """
    return encode_jpeg(shrink(read_image(path, limits=limits), THUMBNAIL_PIXELS))


def shrink(pixels: Tensor, max_side: int) -> Image.Image:
    """Reduce uint8 (3, H, W) to at most `max_side` pixels per side; the aspect ratio does not change."""
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    image.thumbnail((max_side, max_side))
    return image


def encode_jpeg(image: Image.Image) -> bytes:
    """Return a JPEG of medium quality."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

"""A small JPEG of an image, for pages that show it."""

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_image

THUMBNAIL_PIXELS = 240


def thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    """The image at `path`, at most 240 pixels a side; raises UndecodableImage."""
    return as_jpeg(shrink(read_image(path, limits=limits), THUMBNAIL_PIXELS))


def shrink(pixels: Tensor, longest: int) -> Image.Image:
    """The image uint8 (3, H, W), at most `longest` pixels a side."""
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    image.thumbnail((longest, longest))
    return image


def as_jpeg(image: Image.Image) -> bytes:
    """The bytes of a JPEG of middling quality."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

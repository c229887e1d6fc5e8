"""A small JPEG of an image, for pages that show it."""

import io
from pathlib import Path

from PIL import Image

from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_image

THUMBNAIL_PIXELS = 240


def thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    """The image at `path`, at most 240 pixels a side; raises UndecodableImage."""
    image = Image.fromarray(read_image(path, limits=limits).movedim(0, -1).contiguous().numpy())
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

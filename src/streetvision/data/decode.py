"""Decode image files to uint8 RGB tensors: `image_file`, with torchvision's faster decoder of JPEGs.

Shapes: H and W are pixels, after EXIF orientation.
"""

from pathlib import Path

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.image_file import Pixels, decode_pixels, read_pixels


def decode_image(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> torch.Tensor:
    """Decode one image file.

    Returns:
        (3, H, W) uint8 RGB, channels last in memory: `resize_square` is fastest on this layout.

    Raises:
        UndecodableImage: As `decode_pixels`.
    """
    return torch.from_numpy(decode_pixels(data, limits=limits, decode_jpeg=decode_jpeg_fast)).permute(2, 0, 1)


def read_image(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> torch.Tensor:
    """Decode the image file `path` to (3, H, W) uint8 RGB.

    Raises:
        UndecodableImage: As `decode_pixels`; the message names the path.
    """
    return torch.from_numpy(read_pixels(path, limits=limits, decode_jpeg=decode_jpeg_fast)).permute(2, 0, 1)


def decode_jpeg_fast(data: bytes) -> Pixels:
    """Decode an 8-bit grey or RGB JPEG with torchvision, to uint8 (H, W, 3)."""
    # Deprecated since torchvision 0.29, but twice as fast as Pillow on a photo of a phone. Remove it with the function.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: Pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return pixels


def resize_square(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resize a uint8 image (3, H, W) to (3, size, size): the evaluation preprocessing of every model.

    The interpolation is bilinear with antialiasing, as in the image processor of the subnet's miner, so a model gets
    the same pixels there. The aspect ratio changes, and nothing is cropped.
    """
    resized: torch.Tensor = F.resize(image, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized

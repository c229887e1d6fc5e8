"""Quality of an image in a few numbers, for monitoring. Does not import torch."""

from typing import NamedTuple

import numpy as np

from streetvision.data.image_file import DecodedImage

GRID, CROP = 32, 64
"""Pixels per axis that brightness and contrast are measured on, and of the crop that sharpness is measured on."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255


class ImageQuality(NamedTuple):
    """Size and quality of an image."""

    width: float
    """Pixels, after EXIF orientation."""
    height: float
    """Pixels, after EXIF orientation."""
    brightness: float
    """Mean luminance, from 0 to 1."""
    contrast: float
    """Standard deviation of the luminance."""
    sharpness: float
    """Standard deviation of the Laplacian at the center, at the resolution of the decoder, of values from 0 to 1."""
    jpeg_quality: float | None
    """Estimated quality setting of the encoder, from 1 to 100; None: not a JPEG file."""


def measure_quality(image: DecodedImage) -> ImageQuality:
    """Measure an image on a part of its pixels, which takes a fraction of a millisecond."""
    pixels = image.pixels
    height, width, _ = pixels.shape
    luma = pixels[:: max(1, height // GRID), :: max(1, width // GRID)].astype(np.float32) @ LUMA
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    green = pixels[top : top + CROP, left : left + CROP, 1].astype(np.float32)
    sharpness = 0.0
    if min(green.shape) > 2:
        inner = green[1:-1, 1:-1]
        laplacian = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * inner
        sharpness = float(laplacian.std()) / 255
    full_height, full_width = map(float, image.size)
    return ImageQuality(full_width, full_height, float(luma.mean()), float(luma.std()), sharpness, image.jpeg_quality)

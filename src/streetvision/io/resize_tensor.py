"""Fit decoded images into the model's input: the preprocessing of every PyTorch model."""

import torch
from torch.nn.functional import interpolate

from streetvision.io.resize import ImageSize, fit_box


def resize_tensor(image: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Resize uint8 (..., C, H, W) to (..., C, h, w), bilinear with antialiasing."""
    if image.shape[-2:] == tuple(size):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    # uint8 is supported on the CPU only.
    pixels = batch if batch.device.type == "cpu" else batch.float()
    resized = interpolate(pixels, size=list(size), mode="bilinear", align_corners=False, antialias=True)
    if resized.is_floating_point():
        resized = resized.round_().to(torch.uint8)
    return resized.reshape(*image.shape[:-2], *size)


def fit_tensor(image: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Resize a uint8 image (3, H, W) to the model's input (3, h, w).

    The image fills the input, so its aspect ratio changes; nothing is cropped. An image whose aspect ratio would change
    by more than MAX_STRETCH is padded with black on both sides.
    """
    height, width = image.shape[-2:]
    box = fit_box((height, width), size)
    if box.size == size:
        return resize_tensor(image, size)
    padded = image.new_zeros(3, *size)
    padded[:, box.top : box.bottom, box.left : box.right] = resize_tensor(image, box.size)
    return padded

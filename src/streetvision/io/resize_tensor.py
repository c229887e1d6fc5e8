"""Fit decoded images into the model's input with torchvision: the preprocessing of every PyTorch model."""

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from streetvision.io.resize import ImageSize, fit_box


def resize_tensor(image: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Resize uint8 (..., 3, H, W) to (..., 3, h, w), bilinear with antialiasing."""
    resized: torch.Tensor = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


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

"""Random changes of color as one linear map per pixel, instead of one pass over the image for each change."""

import math

import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray: ITU-R BT.601."""
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Gray and the two color axes of the NTSC standard; a change of hue is a rotation of these axes."""


class ColorJitter(nn.Module):
    """Random brightness, contrast, saturation and hue; draws from torch's global generator.

    All four are linear in the pixel, so together they are one 3 x 3 matrix and an offset. The result is rounded and
    clipped once.

    Args:
        jitter: Brightness, contrast and saturation change by factors from 1 - jitter to 1 + jitter.
        hue: Hue rotates by up to this fraction of a full turn.

    References:
        P. Haeberli, "Matrix Operations for Image Processing", 1993.
    """

    def __init__(self, jitter: float, *, hue: float) -> None:
        super().__init__()
        self.jitter, self.hue = jitter, hue

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, H, W)."""
        brightness, contrast, saturation = (1 + self.jitter * (2 * torch.rand(3) - 1)).tolist()
        hue = self.hue * (2 * float(torch.rand(())) - 1)
        return adjust_colors(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


def adjust_colors(image: Tensor, *, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Change the colors of uint8 (3, H, W).

    Args:
        image: The image.
        brightness: Factor of all values; 1: no change.
        contrast: Factor of the distance to the mean gray of the image; 1: no change.
        saturation: Factor of the distance to the gray of the pixel; 1: no change.
        hue: Rotation as a fraction of a full turn; gray does not change.
    """
    luma = torch.tensor(LUMA)
    pixels = image.flatten(1).float()  # (3, H * W)
    saturate = saturation * torch.eye(3) + (1 - saturation) * luma.expand(3, 3)
    matrix = contrast * brightness * (saturate @ _hue_matrix(hue))
    offset = (1 - contrast) * brightness * float(luma @ pixels.mean(dim=1))
    # Adding 0.5 before the truncation to uint8 rounds to the nearest integer.
    changed = torch.matmul(matrix, pixels).add_(offset + 0.5).clamp_(0, 255.5)
    return changed.to(torch.uint8).view(image.shape)


def _hue_matrix(hue: float) -> Tensor:
    """(3, 3) on red, green and blue: a rotation of the two color axes of YIQ."""
    axes = torch.tensor(YIQ)
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    rotation = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])
    matrix: Tensor = torch.linalg.inv(axes) @ rotation @ axes
    return matrix

"""Random changes of colour as one linear map of each pixel, in place of one pass over the image for each."""

import math

import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601."""
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Grey, and the two axes of colour that hue turns in: the NTSC standard's."""


class ColorJitter(nn.Module):
    """Brightness, contrast and saturation by factors in 1 - j to 1 + j, and hue by up to `hue` of a turn.

    Each is linear in the pixel (P. Haeberli, "Matrix Operations for Image Processing", 1993), so that all are one
    3 x 3 matrix and a shift; the result is rounded and clipped once. Draws from torch's global generator.
    """

    def __init__(self, jitter: float, *, hue: float) -> None:
        super().__init__()
        self.jitter, self.hue = jitter, hue

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, H, W)."""
        brightness, contrast, saturation = (1 + self.jitter * (2 * torch.rand(3) - 1)).tolist()
        turn = self.hue * (2 * float(torch.rand(())) - 1)
        return adjust_colors(image, brightness=brightness, contrast=contrast, saturation=saturation, turn=turn)


def adjust_colors(image: Tensor, *, brightness: float, contrast: float, saturation: float, turn: float) -> Tensor:
    """uint8 (3, H, W) -> the same with its colours changed.

    Factors of 1 change nothing. `contrast` stretches around the mean grey of the image, `saturation` around each
    pixel's own grey, and `turn`, a share of a full one, moves the hue while grey stays.
    """
    luma = torch.tensor(LUMA)
    pixels = image.flatten(1).float()  # (3, H * W)
    greys = saturation * torch.eye(3) + (1 - saturation) * luma.expand(3, 3)
    matrix = contrast * brightness * (greys @ _hue_matrix(turn))
    shift = (1 - contrast) * brightness * float(luma @ pixels.mean(dim=1))
    changed = torch.matmul(matrix, pixels).add_(shift + 0.5).clamp_(0, 255.5)
    return changed.to(torch.uint8).view(image.shape)


def _hue_matrix(turn: float) -> Tensor:
    """(3, 3) on red, green and blue: a rotation of the two colour axes of YIQ."""
    axes = torch.tensor(YIQ)
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rotation = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])
    matrix: Tensor = torch.linalg.inv(axes) @ rotation @ axes
    return matrix

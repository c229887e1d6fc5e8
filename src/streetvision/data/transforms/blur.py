"""Gaussian blur as two matrix products."""

import torch
from torch import Tensor, nn


class RandomBlur(nn.Module):
    """Gaussian blur with a random standard deviation; draws from torch's global generator.

    Args:
        radius: Pixels beyond which the Gaussian is truncated.
        sigma: Bounds of the standard deviation in pixels, drawn uniformly.
    """

    def __init__(self, radius: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.radius, self.sigma = radius, sigma

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, H, W)."""
        return blur(image, radius=self.radius, sigma=float(torch.empty(()).uniform_(*self.sigma)))


def blur(image: Tensor, *, radius: int, sigma: float) -> Tensor:
    """Blur uint8 (3, H, W) with a Gaussian truncated at `radius` pixels; edges are mirrored.

    The Gaussian is separable, and each of its two passes is linear in the pixels of a row or a column.
    """
    rows, columns = (_blur_matrix(side, radius, sigma) for side in image.shape[1:])
    blurred: Tensor = rows @ image.float() @ columns.T
    return blurred.round_().to(torch.uint8)


def _blur_matrix(side: int, radius: int, sigma: float) -> Tensor:
    """(side, side): row i has the weight of each pixel of a line in the blurred pixel i."""
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    sources = (torch.arange(side)[:, None] + steps).abs()  # pixel -1 mirrors to pixel 1
    sources = torch.where(sources < side, sources, 2 * (side - 1) - sources)
    normalized = (weights / weights.sum()).expand(side, -1)
    return torch.zeros(side, side).scatter_add_(1, sources, normalized)

"""Gaussian blur of an image as a product with one matrix from each side."""

import torch
from torch import Tensor, nn


class RandomBlur(nn.Module):
    """Gaussian blur of a width drawn evenly from `sigma`, in pixels; draws from torch's global generator."""

    def __init__(self, radius: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.radius, self.sigma = radius, sigma

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, H, W)."""
        return blur(image, radius=self.radius, sigma=float(torch.empty(()).uniform_(*self.sigma)))


def blur(image: Tensor, *, radius: int, sigma: float) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, H, W): a Gaussian cut off beyond `radius` pixels, the edges mirrored.

    A Gaussian is the product of one along each axis, and each of these is linear in a row or a column of pixels.
    """
    rows, columns = (_band(side, radius, sigma) for side in image.shape[1:])
    blurred: Tensor = rows @ image.float() @ columns.T
    return blurred.round_().to(torch.uint8)


def _band(side: int, radius: int, sigma: float) -> Tensor:
    """(side, side): row i holds what each pixel of a line gives to the blurred pixel i."""
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    sources = (torch.arange(side)[:, None] + steps).abs()  # pixel -1 is pixel 1
    sources = torch.where(sources < side, sources, 2 * (side - 1) - sources)
    shares = (weights / weights.sum()).expand(side, -1)
    return torch.zeros(side, side).scatter_add_(1, sources, shares)

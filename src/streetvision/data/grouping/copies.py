"""Decide whether two similar images are copies of one photograph: their details agree, and not only their layout.

Two frames of one camera share the horizon, the lane and the bonnet, so their thumbnails correlate, but their details
differ. The test aligns one image with the other, because copies may be cropped, stretched or slightly rotated. It
removes the coarse structure, divides the image into cells, and requires that the details of every cell correlate.

Shapes: P pairs, N images, T pixels per side of a thumbnail, S pixels per side at one level of the alignment. A map
(2, 3) takes a point of the first image to a point of the second; both axes go from -1 to 1.

References:
    Baker and Matthews, "Lucas-Kanade 20 Years On: A Unifying Framework", IJCV 56 (2004), section 3.2: the alignment.
"""

from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from streetvision.contracts.progress import Progress, Silent
from streetvision.data.grouping.hamming import Hashes, Positions
from streetvision.data.grouping.perceptual_hash import TRIMS, WORKING_SIZE, Thumbnails

Flags: TypeAlias = npt.NDArray[np.bool_]

CELLS = 8
"""Cells per side."""
DETAIL_BLUR = 1 / 50
"""Standard deviation of the blur that is subtracted, as a fraction of the side. The rest are the details."""
NOISE = 1.0
"""Gray levels that compression and resampling may add to a cell. They lower the correlation of nearly flat cells."""
DETAILED, STRONG = 2.0, 3.0
"""Standard deviations of the details. Cells below the first, such as sky, are not compared."""
CELL_CORRELATION = 0.4
"""Correlation of the details from which a cell agrees. In copies, every cell with strong details agrees."""
AGREEING_CELLS = 0.9
"""Share of all compared cells that agree in copies. Compression may destroy the weak details of a few."""
MIN_CELLS = 12
"""Fewer compared cells are no proof of a copy."""
DARKEST, BRIGHTEST = 5, 250
"""Gray levels outside of which a pixel is not compared: a change of brightness has destroyed its details."""
MIN_CELL_AREA = 0.3
"""Share of a cell that both images must show."""
MARGIN = 0.04
"""Fraction of each side at the edges that is not compared: a slight rotation leaves empty corners."""
COARSE_SIZE, COARSE_STEPS = 24, 3
"""Pixels per side and number of steps of the first alignment."""
WORTH_ALIGNING, ALIGNED, ALIGNED_AT_ONCE = 0.15, 0.8, 0.7
"""Correlations at COARSE_SIZE. Pairs below the first are not aligned. Of the others, those are compared in detail that
reach the second after the alignment, or the third without it. Most pairs of different photographs end here."""
FINE_STEPS = ((48, 5), (96, 3))
"""Pixels per side and number of steps of the further alignments."""
BLOCK = 256
"""Number of pairs in memory at a time."""


def find_copies(pairs: Positions, thumbnails: Thumbnails, *, progress: Progress | None = None) -> Flags:
    """Return (P,) whether the two images of each pair are copies of one photograph.

    Found are copies that are scaled, encoded again, brighter or darker, cropped by about 5 % of an edge, rotated by a
    few degrees, or that have a caption over the upper or lower eighth. Two photographs by one camera are not copies,
    even if only a small object differs.
    """
    copies = np.zeros(len(pairs), dtype=np.bool_)
    starts = range(0, len(pairs), BLOCK)
    for start in (progress or Silent()).track(starts, total=len(starts), label="compare"):
        images, position = np.unique(pairs[start : start + BLOCK], return_inverse=True)
        grey = torch.from_numpy(thumbnails[images]).float()
        first, second = torch.from_numpy(position.reshape(-1, 2)).T
        small = _normalise(_shrink(grey, COARSE_SIZE))
        maps = _scaling(1.0).expand(len(first), 2, 3)
        before = _correlation(small[first], small[second], maps)
        active = torch.nonzero(before >= WORTH_ALIGNING)[:, 0]
        first, second, maps = first[active], second[active], maps[active]
        maps = _align(small[first], small[second], maps, COARSE_STEPS)
        after = _correlation(small[first], small[second], maps)
        similar = (after >= ALIGNED) | (before[active] >= ALIGNED_AT_ONCE)
        if similar.any():
            found = _compare(grey[first[similar]], grey[second[similar]], maps[similar])
            copies[start + active[similar].numpy()] = found.numpy()
    return copies


def detail_signs(thumbnails: Thumbnails) -> Hashes:
    """Return (N, COARSE_SIZE ** 2 / 64): one bit per pixel at COARSE_SIZE, set where it is above its surroundings.

    The number of different bits orders the pairs of similar images: copies that are not cropped or rotated come first.
    """
    signs = np.empty((len(thumbnails), COARSE_SIZE**2 // 64), dtype=np.uint64)
    for start in range(0, len(thumbnails), BLOCK):
        grey = torch.from_numpy(thumbnails[start : start + BLOCK]).float()
        above = (_normalise(_shrink(grey, COARSE_SIZE)) > 0).flatten(1).numpy()
        signs[start : start + BLOCK] = np.packbits(above, axis=1).view(np.uint64)
    return signs


def _compare(first: Tensor, second: Tensor, aligned: Tensor) -> Tensor:
    """(P,) whether the images (P, T, T) are copies, by simple maps or else by the map `aligned` after refinement."""
    scales = [1 - 2 * trim / WORKING_SIZE for trim in TRIMS]
    simple = [_scaling(scale) for scale in {*scales, *(1 / scale for scale in scales)}]
    copies = torch.stack([_details_agree(first, second, maps.expand(len(first), 2, 3)) for maps in simple]).any(0)
    rest = torch.nonzero(~copies)[:, 0]
    first, second, maps = first[rest], second[rest], aligned[rest]
    for size, steps in FINE_STEPS:
        maps = _align(_normalise(_shrink(first, size)), _normalise(_shrink(second, size)), maps, steps)
    copies[rest] = _details_agree(first, second, maps)
    return copies


def _details_agree(first: Tensor, second: Tensor, maps: Tensor) -> Tensor:
    """(P,) whether the details of the images (P, T, T) agree under the maps (P, 2, 3); not with too few cells.

    The upper or the lower row is left out if most of it differs, as under a caption.
    """
    second = _warp(second, maps)
    inside = _inside(maps, first.shape[-1])
    for grey in (first, second):
        inside = inside * ((grey > DARKEST) & (grey < BRIGHTEST))
    weight = _cells(inside).clamp_min(1e-6)
    first, second = _details(first) * inside, _details(second) * inside
    power_first, power_second = _cells(first * first) / weight, _cells(second * second) / weight
    correlation = _cells(first * second) / weight / ((power_first + NOISE**2) * (power_second + NOISE**2)).sqrt()
    deviation = torch.maximum(power_first, power_second).sqrt()
    compared = (deviation > DETAILED) & (weight > MIN_CELL_AREA)
    agrees = correlation > CELL_CORRELATION
    for border in (0, -1):
        captioned = (compared & ~agrees)[:, border].sum(1) > CELLS // 2
        compared[:, border] &= ~captioned[:, None]
    n_compared = compared.sum((1, 2))
    strong_agree = (agrees | ~compared | (deviation < STRONG)).all(2).all(1)
    most_agree = (agrees & compared).sum((1, 2)) >= AGREEING_CELLS * n_compared
    return strong_agree & most_agree & (n_compared >= MIN_CELLS)


def _align(first: Tensor, second: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Improve the maps by Gauss-Newton steps on the squared difference of the images (P, S, S), robustly weighted."""
    size = first.shape[-1]
    for _ in range(steps):
        warped = _warp(second, maps)
        difference = first - warped
        # Cauchy weights: a caption or a pasted object does not move the map.
        weight = _inside(maps, size) / (1 + (difference / 0.7) ** 2)
        gradient_y, gradient_x = (gradient * size / 2 for gradient in torch.gradient(warped, dim=(1, 2)))
        x, y = _centres(size), _centres(size)[:, None]
        columns = (gradient_x * x, gradient_x * y, gradient_x, gradient_y * x, gradient_y * y, gradient_y)
        jacobian = torch.stack(columns, dim=-1).flatten(1, 2)
        weighted = jacobian * weight.flatten(1)[..., None]
        hessian = weighted.transpose(1, 2) @ jacobian
        damping = 1e-3 * hessian.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        hessian = hessian + damping[:, None, None] * torch.eye(6)
        step = torch.linalg.solve(hessian, (weighted * difference.flatten(1)[..., None]).sum(1)).reshape(-1, 2, 3)
        maps = maps + maps[..., :2] @ step  # the map after the identity plus `step`
    return maps


def _details(grey: Tensor) -> Tensor:
    """(P, T, T) without its coarse structure."""
    blur = _blur(grey.shape[-1], DETAIL_BLUR)
    return grey - blur @ grey @ blur.T


def _normalise(grey: Tensor) -> Tensor:
    """(P, S, S) with a local mean of 0 and a local standard deviation of nearly 1, so that brightness cancels."""
    blur = _blur(grey.shape[-1], 0.1)
    centred = grey - blur @ grey @ blur.T
    deviation = (blur @ (centred * centred) @ blur.T).sqrt()
    return centred / (deviation + 4)


def _correlation(first: Tensor, second: Tensor, maps: Tensor) -> Tensor:
    """(P,) correlation of normalized images (P, S, S)."""
    inside = _inside(maps, first.shape[-1])
    second = _warp(second, maps)
    product = (first * second * inside).sum((1, 2))
    return product / ((first**2 * inside).sum((1, 2)) * (second**2 * inside).sum((1, 2))).sqrt().clamp_min(1e-6)


def _cells(values: Tensor) -> Tensor:
    """(P, T, T) to the means of the cells, (P, CELLS, CELLS)."""
    return F.avg_pool2d(values[:, None], values.shape[-1] // CELLS)[:, 0]


def _shrink(grey: Tensor, size: int) -> Tensor:
    """(P, T, T) to (P, S, S) by means of squares of pixels."""
    return F.avg_pool2d(grey[:, None], grey.shape[-1] // size)[:, 0]


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    """The images (P, S, S) sampled at the mapped points."""
    grid = _mapped_points(maps, images.shape[-1]).movedim(1, -1)
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _inside(maps: Tensor, size: int) -> Tensor:
    """(P, S, S): 1 where both images have a pixel, and not at an edge; else 0."""
    limit = 1 - 2 * MARGIN
    centres = _centres(size).abs() <= limit
    return ((_mapped_points(maps, size).abs().amax(1) <= limit) & centres & centres[:, None]).float()


def _mapped_points(maps: Tensor, size: int) -> Tensor:
    """(P, 2, S, S): where the maps take the center of each pixel, as x and y."""
    by_x, by_y, shift = maps[..., None, None].unbind(2)
    return by_x * _centres(size) + by_y * _centres(size)[:, None] + shift


def _scaling(scale: float) -> Tensor:
    """The map (2, 3) to the central part of an image."""
    return torch.tensor([[scale, 0.0, 0.0], [0.0, scale, 0.0]])


@cache
def _centres(size: int) -> Tensor:
    """(S,): the centers of the pixels of one axis."""
    return (torch.arange(size) + 0.5) / size * 2 - 1


@cache
def _blur(size: int, sigma: float) -> Tensor:
    """(S, S): Gaussian blur of one axis; `sigma` is a fraction of the side."""
    position = torch.arange(size) / size
    weight = torch.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))
    return weight / weight.sum(1, keepdim=True)

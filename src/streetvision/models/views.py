"""The geometry of views, and the views of one image as arrays. Does not import torch; `multi_view` makes tensors.

Shapes: H, W pixels of the image; h, w pixels of a view; V views.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import ArtifactError
from streetvision.io.resize import Box, ImageSize, fit_box
from streetvision.models.config import FusionDescription, ViewsConfig

MAX_DENSE_RATIO = 64
"""Largest number of pixels of the dense pass, as a multiple of those of the single view."""
VIEW_CHUNK_SIZE = 64
"""Views per forward pass of the backbone, which bounds its memory. More are slower on a CPU, where the system allocates
large blocks again for each pass."""
REFERENCE_SIZE = 10_000
"""Pixels per side of the square image on which distances are measured, large enough to make rounding irrelevant."""


class ViewArrays(NamedTuple):
    """The views of one image: first the global view, then the tiles row by row."""

    pixels: NDArray[np.uint8]
    """(V, 3, h, w): each view is resized like a whole image (`fit_box`); the first one is the single view."""
    content: NDArray[np.int64]
    """(V, 4): left, top, right, bottom of the part that is not padding, in pixels of the view."""
    mask: NDArray[np.bool_]
    """(V,): False for a view with the same box as an earlier one; its pixels are black."""
    dense: NDArray[np.uint8]
    """(D, 3, H', W'): the image at the size of the dense pass; D = 0 without one."""
    dense_content: NDArray[np.int64]
    """(D, 4): the part of the dense pass that is not padding, in its pixels, as in `content`."""


def plan_views(height: int, width: int, config: ViewsConfig | None) -> list[Box]:
    """Return the box of each view in an image of H x W pixels; together the tiles cover every pixel.

    Without `config`, the whole image is the only view.
    """
    if config is None:
        return [Box(0, 0, width, height)]
    rows = _spans(height, config.rows, config.overlap)
    columns = _spans(width, config.columns, config.overlap)
    tiles = [Box(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return [Box(0, 0, width, height), *tiles]


def view_distances(config: ViewsConfig) -> NDArray[np.float32]:
    """Return the distances (V, V) between the centers of views, as fractions of the image's side.

    The global view covers the whole image, so its distance to every view is 0.
    """
    boxes = np.array(plan_views(REFERENCE_SIZE, REFERENCE_SIZE, config), dtype=np.float32) / REFERENCE_SIZE
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances: NDArray[np.float32] = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    distances[0, :] = distances[:, 0] = 0
    return distances


def patch_grid(dense_size: ImageSize, patches: int) -> tuple[int, int]:
    """Return rows and columns of the patches of an image of `dense_size`."""
    patch_size = math.sqrt(dense_size[0] * dense_size[1] / patches)
    return round(dense_size[0] / patch_size), round(dense_size[1] / patch_size)


def patch_mask(content: NDArray[np.int64], image_size: ImageSize, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which patches show a part of an image that is not padding (..., T).

    Args:
        content: Box (..., 4) of this part in an image of `image_size`, as in `ViewArrays.dense_content`.
        image_size: h, w.
        grid: Rows and columns of the patches.
    """
    left, top, right, bottom = np.moveaxis(content / np.array(image_size[::-1] * 2), -1, 0)[..., None]
    y, x = (np.arange(count + 1) / count for count in grid)
    inside = ((y[1:] > top) & (y[:-1] < bottom))[..., :, None] & ((x[1:] > left) & (x[:-1] < right))[..., None, :]
    mask: NDArray[np.bool_] = inside.reshape(*content.shape[:-1], grid[0] * grid[1])
    return mask


def plan_patches(height: int, width: int, dense_size: ImageSize, patches: int) -> list[Box]:
    """Return the box of each patch in an image of H x W pixels; those of padding are empty."""
    rows, columns = patch_grid(dense_size, patches)
    content = fit_box((height, width), dense_size)

    def edges(count: int, full: int, start: int, inner: int, length: int) -> list[int]:
        positions = ((np.arange(count + 1) * full / count) - start) / inner * length
        return [round(edge) for edge in np.clip(positions, 0, length).tolist()]

    inner_height, inner_width = content.size
    y = edges(rows, dense_size[0], content.top, inner_height, height)
    x = edges(columns, dense_size[1], content.left, inner_width, width)
    return [Box(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]


def check_dense_size(dense_size: ImageSize, image_size: ImageSize) -> None:
    """Raise ArtifactError if a dense pass has more than MAX_DENSE_RATIO times the pixels of the single view."""
    if math.prod(dense_size) > MAX_DENSE_RATIO * math.prod(image_size):
        raise ArtifactError(
            f"the dense pass of the fusion has {dense_size[0]} x {dense_size[1]} pixels, more than {MAX_DENSE_RATIO} "
            f"times the model's {image_size[0]} x {image_size[1]}",
            "train again with a smaller phase4c.dense_ratio",
        )


def views_per_image(description: FusionDescription, image_size: ImageSize) -> int:
    """Return the number of views of one image; a dense pass counts as the views that have as many pixels."""
    if description.dense_size is None:
        return 1 + description.tiles
    return 1 + math.ceil(math.prod(description.dense_size) / math.prod(image_size))


def evidence_sharpness(tiles: int) -> float:
    """Return beta of the log-sum-exp over tiles or patches, log(tiles).

    One tile with the evidence e, among tiles with none, then counts for about e - 1, however many tiles there are.
    """
    return float(np.log(max(tiles, 2)))


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` spans of equal size from 0 to `length`; neighbors share at least the fraction `overlap` of a span."""
    # count spans with count - 1 overlaps cover size * (count - (count - 1) * overlap).
    size = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    starts = [round(index * (length - size) / max(count - 1, 1)) for index in range(count)]
    return [(start, start + size) for start in starts]

"""The geometry of views, and the views of one image as arrays. Does not import torch; `multi_view` makes tensors.

Shapes: H, W pixels of the image; h, w pixels of a view; V views.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streetvision.io.resize import Box
from streetvision.models.config import ViewsConfig

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


def plan_views(height: int, width: int, config: ViewsConfig) -> list[Box]:
    """Return the box of each view in an image of H x W pixels; together the tiles cover every pixel."""
    rows = _spans(height, config.rows, config.overlap)
    columns = _spans(width, config.columns, config.overlap)
    tiles = [Box(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return [Box(0, 0, width, height), *tiles]


def view_distances(config: ViewsConfig) -> NDArray[np.float32]:
    """Return the distances (V, V) between the centres of views, as fractions of the image's side.

    The global view covers the whole image, so its distance to every view is 0.
    """
    boxes = np.array(plan_views(REFERENCE_SIZE, REFERENCE_SIZE, config), dtype=np.float32) / REFERENCE_SIZE
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances: NDArray[np.float32] = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    distances[0, :] = distances[:, 0] = 0
    return distances


def evidence_sharpness(tiles: int) -> float:
    """Return beta of the log-sum-exp over tiles, log(tiles).

    One tile with the evidence e, among tiles with none, then counts for about e - 1, however many tiles there are.
    """
    return float(np.log(max(tiles, 2)))


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` spans of equal size from 0 to `length`; neighbours share at least the fraction `overlap` of a span."""
    # count spans with count - 1 overlaps cover size * (count - (count - 1) * overlap).
    size = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    starts = [round(index * (length - size) / max(count - 1, 1)) for index in range(count)]
    return [(start, start + size) for start in starts]

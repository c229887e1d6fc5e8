"""The size of the model's input: the one that is set, or one that fits the images."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.split_contracts import Row
from streetvision.io.resize import ImageSize
from streetvision.models.backbone_spec import SizeRule
from streetvision.models.config import AUTO, ModelConfig
from streetvision.models.module import fixed_size

TOKENS = 560
"""Patches with model.image_tokens=auto."""
FEWER_TOKENS = 280
"""Patches with model.image_tokens=auto, for a fine-tuning that the budget is too short for with TOKENS."""
LARGEST_PATCH = 16
"""Pixels per side that count as one token of the budget for networks with a larger stride."""


def input_size(config: ModelConfig, rows: Iterable[Row], *, tokens: int = TOKENS) -> SizeRule:
    """The rule for the size of the model's input: the size that is set, or one that fits the images of `rows`.

    Args:
        config: The classifier.
        rows: The images.
        tokens: Number of patches where the settings leave it open.
    """
    if config.image_size != AUTO:
        return fixed_size(config.image_size)
    images = [(row.height, row.width) for row in rows]
    if isinstance(config.image_tokens, int):
        tokens = config.image_tokens
    return partial(auto_image_size, images=images, tokens=tokens)


def auto_image_size(patch_size: int, native: ImageSize, *, images: Sequence[ImageSize], tokens: int) -> ImageSize:
    """Return the size of the input for images of different sizes.

    It has the median aspect ratio of the images and about `tokens` patches. It has fewer where the images are smaller
    than that, but not fewer than the backbone was trained with.

    Args:
        patch_size: Pixels per side of a patch, or the total stride of a convolutional network.
        native: Size that the backbone was trained with.
        images: Size of each image.
        tokens: Number of patches, at most. A patch of a network with a large stride counts as several of 16 pixels.

    Raises:
        ConfigError: `tokens` does not suffice for one row of patches.
    """
    heights, widths = np.array(images, dtype=np.float64).T
    aspect = float(np.exp(np.median(np.log(widths / heights))))
    budget = tokens * min(patch_size, LARGEST_PATCH) ** 2
    area = min(budget, max(native[0] * native[1], float(np.median(heights * widths))))
    rows, columns = math.sqrt(area / aspect) / patch_size, math.sqrt(area * aspect) / patch_size
    if min(rows, columns) < 1:
        needed = math.ceil(max(aspect, 1 / aspect) * (patch_size / min(patch_size, LARGEST_PATCH)) ** 2)
        raise ConfigError(
            f"model.image_tokens={tokens} gives less than one row of patches: the median aspect ratio of TRAIN is "
            f"{aspect:.2f}",
            f"set model.image_tokens to at least {needed}, or set 'model.image_size=[HEIGHT,WIDTH]'",
        )
    return round(rows) * patch_size, round(columns) * patch_size

"""Versions of the preprocessing: how an image is decoded before it is resized. Does not import torch.

1: JPEGs are decoded at full size.
2: JPEGs are reduced by 2, 4 or 8 while they are decoded, where at least `decode_size` pixels remain. That is faster.

The version is a part of the description of a classifier, so training, evaluation and serving use the same one.
"""

from streetvision.io.resize import ImageSize, decode_size, fit_box
from streetvision.models.config import ClassifierDescription, FusionDescription
from streetvision.models.views import plan_views


def input_decode_size(
    image: ImageSize, description: ClassifierDescription, fusion: FusionDescription | None = None
) -> ImageSize:
    """Return the smallest size to which the decoder may reduce an image for a classifier.

    Args:
        image: H, W.
        description: The classifier.
        fusion: How the image is split into views: tiles, and a larger copy for a dense pass, need more pixels.
    """
    if not description.reduces:
        return image
    size = description.image_size
    parts = {(box.size, size) for box in plan_views(*image, None if fusion is None else fusion.views)}
    if fusion is not None and fusion.dense_size is not None:
        parts.add((image, fusion.dense_size))
    sizes = [decode_size(image, part, fit_box(part, target).size) for part, target in parts]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    return height, width

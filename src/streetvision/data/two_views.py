"""Pairs of random views for self-supervised learning: of one image, or of two images of a group."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from streetvision.data.config import PairConfig
from streetvision.data.datamodule import ImageDataset
from streetvision.data.transforms.blur import RandomBlur
from streetvision.data.transforms.color import ColorJitter
from streetvision.io.resize import ImageSize, as_size, decode_size

JITTER_PROBABILITY = 0.8
BLUR_PROBABILITY = 0.5
MOST_STRETCHED = 4 / 3
"""Largest aspect ratio of a crop, and 1 / the smallest: the defaults of RandomResizedCrop."""
BLUR_SIGMA = (0.1, 2.0)
"""Bounds of the standard deviation in pixels, for images of 224 x 224."""


class TwoViews(nn.Module):
    """Two random views of one image or of two images, drawn independently from torch's global generator.

    Args:
        config: How the views differ; settings that are auto have the values of the level simclr.
        image_size: Height and width of a view, or the side of a square.

    References:
        Chen et al., arXiv 2002.05709, appendix A.
    """

    def __init__(self, config: PairConfig, *, image_size: int | ImageSize) -> None:
        super().__init__()
        size, config = as_size(image_size), config.at_level("simclr")
        assert config.crop_scale != "auto"
        assert config.color_jitter != "auto"
        assert config.grayscale_p != "auto"
        self.size, self.least_area = size, config.crop_scale[0]
        jitter = config.color_jitter
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(
                size, scale=config.crop_scale, interpolation=InterpolationMode.BILINEAR, antialias=True
            )
        ]
        if config.flip_probability:
            steps.append(v2.RandomHorizontalFlip(config.flip_probability))
        if jitter:
            steps.append(v2.RandomApply([ColorJitter(jitter, hue=jitter / 4)], p=JITTER_PROBABILITY))
        if config.grayscale_p:
            steps.append(v2.RandomGrayscale(config.grayscale_p))
        if config.blur:
            # As in the paper, the kernel is a tenth of the image; sigma scales with the image too.
            side = math.sqrt(size[0] * size[1])
            low, high = (bound * side / 224 for bound in BLUR_SIGMA)
            steps.append(v2.RandomApply([RandomBlur(max(1, round(side / 20)), (low, high))], p=BLUR_PROBABILITY))
        self.draw = v2.Compose(steps)

    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image before `forward`."""
        side = math.sqrt(image[0] * image[1] * self.least_area / MOST_STRETCHED)
        return decode_size(image, (min(side, image[0]), min(side, image[1])), self.size)

    def forward(self, image: Tensor, other: Tensor | None = None) -> Tensor:
        """Images uint8 (3, H, W) -> views uint8 (2, 3, h, w): of `image`, and of `other` or `image` again."""
        return torch.stack([self.draw(image), self.draw(image if other is None else other)])


class GroupPairDataset(ImageDataset):
    """Rows whose label is the number of their group. The second view shows a random image of the group."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.members: dict[int, list[int]] = defaultdict(list)
        for position, row in enumerate(self.rows):
            self.members[row.label].append(position)

    def draw(self, position: int) -> Tensor:
        """Return both views (2, 3, h, w)."""
        group = self.members[self.rows[position].label]
        second = group[int(torch.randint(len(group), ()))]
        assert isinstance(self.transform, TwoViews)
        views: Tensor = self.transform(self.read(position), self.read(second))
        return views

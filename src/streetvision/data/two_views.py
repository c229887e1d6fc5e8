"""Two random views of one image, or of two that belong together, for learning without labels."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from streetvision.data.config import PairConfig
from streetvision.data.datamodule import ImageDataset
from streetvision.data.transforms.blur import RandomBlur
from streetvision.data.transforms.color import ColorJitter

JITTERED = 0.8
"""Chance that a view's colours are changed at all."""
BLURRED = 0.5
BLUR_SIGMA = (0.1, 2.0)


class TwoViews(nn.Module):
    """One or two images uint8 (3, H, W) -> uint8 (2, 3, S, S), drawn apart from torch's global generator."""

    def __init__(self, config: PairConfig, *, image_size: int) -> None:
        super().__init__()
        jitter = config.color_jitter
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(
                image_size, scale=config.crop_scale, interpolation=InterpolationMode.BILINEAR, antialias=True
            )
        ]
        steps += [v2.RandomHorizontalFlip(config.flip_probability)] if config.flip_probability else []
        if jitter:
            steps += [v2.RandomApply([ColorJitter(jitter, hue=jitter / 4)], p=JITTERED)]
        steps += [v2.RandomGrayscale(config.grayscale_p)] if config.grayscale_p else []
        if config.blur:
            # The kernel is a tenth of the side, as in the paper; sigma shrinks with it.
            least, most = (bound * image_size / 224 for bound in BLUR_SIGMA)
            steps += [v2.RandomApply([RandomBlur(max(1, round(image_size / 20)), (least, most))], p=BLURRED)]
        self.draw = v2.Compose(steps)

    def forward(self, image: Tensor, other: Tensor | None = None) -> Tensor:
        """A view of the image, and behind it one of the other, or of the same again."""
        return torch.stack([self.draw(image), self.draw(image if other is None else other)])


class PartnersFromGroups(ImageDataset):
    """Rows whose label is the number of their group; the second view is of any row of it, drawn anew each time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.members: dict[int, list[int]] = defaultdict(list)
        for position, row in enumerate(self.rows):
            self.members[row.label].append(position)

    def draw(self, position: int) -> Tensor:
        """Both views (2, 3, S, S)."""
        together = self.members[self.rows[position].label]
        partner = together[int(torch.randint(len(together), ()))]
        assert isinstance(self.transform, TwoViews)
        views: Tensor = self.transform(self.read(position), self.read(partner))
        return views

"""What happens to a picture on its way to the model: nothing random when judging, a little when training."""

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from streetvision.data.decode import resize_squash

Transform = Callable[[Tensor], Tensor]


class AugmentationConfig(BaseModel):
    """Random changes of training images; the model sees the plain image when it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Smallest and largest share of the image's area that a random crop keeps; 1, 1 crops nothing."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Chance of a left-right flip."""
    colour_jitter: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; a tenth of it for hue."""


def get_train_transforms(config: AugmentationConfig, *, image_size: int) -> Transform:
    """uint8 (3, H, W) -> uint8 (3, image_size, image_size), changed at random by torch's global generator."""
    low, high = config.crop_scale
    jitter = config.colour_jitter
    crop = v2.RandomResizedCrop(
        image_size, scale=(low, high), ratio=(0.8, 1.8), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    steps = [
        crop if low < 1 else Squash(image_size),
        v2.RandomHorizontalFlip(config.flip_probability),
        v2.ColorJitter(jitter, jitter, jitter, 0.1 * jitter),
    ]
    composed: Transform = v2.Compose(steps)
    return composed


def get_val_transforms(*, image_size: int) -> Transform:
    """uint8 (3, H, W) -> uint8 (3, image_size, image_size), always the same."""
    return Squash(image_size)


class Squash(torch.nn.Module):
    """Resize to a square whatever the aspect ratio, as the subnet's stock image processor does."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        return resize_squash(image, self.image_size)

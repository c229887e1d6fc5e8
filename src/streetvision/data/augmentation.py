"""What happens to a picture on its way to the model: nothing random when judging, what a policy says when training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from streetvision.data.config import AugmentationConfig, Level
from streetvision.data.decode import resize_square
from streetvision.data.transforms.color import ColorJitter
from streetvision.data.transforms.validator_distortions import distort

Transform = Callable[[Tensor], Any]
"""Pixels (3, H, W) -> a tensor, or a named tuple of tensors, of the same shapes for every image."""
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (B, 3, S, S), labels (B,)) -> images, and labels (B,) or shares of the classes (B, 2)."""
N_CLASSES = 2


def get_train_transforms(config: AugmentationConfig, *, image_size: int) -> Transform:
    """uint8 (3, H, W) -> uint8 (3, image_size, image_size), changed at random by torch's global generator."""
    low, high = config.crop_scale
    jitter = config.color_jitter
    crop = v2.RandomResizedCrop(
        image_size, scale=(low, high), ratio=(0.8, 1.8), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    steps: list[torch.nn.Module] = [crop if low < 1 else ResizeSquare(image_size)]
    # Steps that change nothing are left out: the torchvision classes draw and copy even then.
    steps += [v2.RandomHorizontalFlip(config.flip_probability)] if config.flip_probability else []
    steps += [ColorJitter(jitter, hue=0.1 * jitter)] if jitter else []
    if config.trivial_augment_wide.enabled:
        steps.append(v2.TrivialAugmentWide(num_magnitude_bins=config.trivial_augment_wide.num_magnitude_bins))
    if config.aug_mix.enabled:
        mix = config.aug_mix
        steps.append(v2.AugMix(severity=mix.severity, mixture_width=mix.mixture_width, alpha=mix.alpha))
    own = v2.Compose(steps)
    either = RandomApply(Validator(config.validator_levels, image_size), own, config.validator_distortion_p)
    erase = [v2.RandomErasing(config.erasing_probability)] if config.erasing_probability else []
    composed: Transform = v2.Compose([either if config.validator_distortion_p else own, *erase])
    return composed


def get_batch_transform(config: AugmentationConfig, *, image_size: int, patch_size: int) -> BatchTransform | None:
    """What is done to whole batches: MixUp or CutMix, then one size for all; None when that is nothing."""
    mixers = [v2.MixUp(alpha=config.mixup_alpha, num_classes=N_CLASSES)] if config.mixup_alpha else []
    mixers += [v2.CutMix(alpha=config.cutmix_alpha, num_classes=N_CLASSES)] if config.cutmix_alpha else []
    sizes = [max(1, round(scale * image_size / patch_size)) * patch_size for scale in config.scales]
    if not mixers and sizes == [image_size]:
        return None
    return BatchAugment(mixers, sizes)


def get_val_transforms(*, image_size: int, validator_level: Level | None = None) -> Transform:
    """uint8 (3, H, W) -> uint8 (3, image_size, image_size), always the same.

    With `validator_level`, the image first goes through the validator's distortions, drawn from torch's global
    generator: what a model is worth to those who ask in that way.
    """
    return ResizeSquare(image_size) if validator_level is None else Validator((validator_level,), image_size)


class ResizeSquare(torch.nn.Module):
    """Resize to a square whatever the aspect ratio, as the subnet's stock image processor does."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        return resize_square(image, self.image_size)


class Validator(torch.nn.Module):
    """The validator's distortions at one of some levels, then the model's size."""

    def __init__(self, levels: tuple[Level, ...], image_size: int) -> None:
        super().__init__()
        self.levels, self.image_size = levels, image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        level = self.levels[int(torch.randint(len(self.levels), ()))]
        return resize_square(distort(image, level), self.image_size)


class RandomApply(torch.nn.Module):
    """One transform for a share of the images, another for the rest."""

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.first, self.second, self.share = first, second, share

    def forward(self, image: Tensor) -> Tensor:
        """What the one that was drawn makes of the image."""
        chosen: Tensor = (self.first if float(torch.rand(())) < self.share else self.second)(image)
        return chosen


class BatchAugment:
    """MixUp or CutMix over a batch, and one of some sizes for all of it."""

    def __init__(self, mixers: list[torch.nn.Module], sizes: list[int]) -> None:
        self.mixers, self.sizes = mixers, sizes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, S, S), labels (B,) -> uint8 (B, 3, S', S'), labels (B,) or shares of the classes (B, 2)."""
        if self.mixers:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            mixed, labels = mixer(images.float(), labels)
            images = mixed.round().to(torch.uint8)
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return (images if size == images.shape[-1] else resize_square(images, size)), labels

"""Transforms of images before the model: random for training, deterministic for evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from streetvision.data.config import AugmentationConfig, Level
from streetvision.data.decode import resize_square
from streetvision.data.transforms.color import ColorJitter
from streetvision.data.transforms.validator_distortions import distort

Transform = Callable[[Tensor], Any]
"""Pixels (3, H, W) -> a tensor, or a named tuple of tensors, with the same shapes for every image."""
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (B, 3, S, S), labels (B,)) -> images, and labels (B,) or class probabilities (B, 2)."""
N_CLASSES = 2
IMAGE_SIZE = 224


def get_train_transforms(config: AugmentationConfig | Mapping[str, Any], *, image_size: int = IMAGE_SIZE) -> Transform:
    """Return the random transform of training images; it draws from torch's global generator.

    Args:
        config: Which transforms are used, and how strong they are; or a mapping of fields of AugmentationConfig.
        image_size: Pixels per side of the result.

    Returns:
        Function uint8 (3, H, W) -> uint8 (3, image_size, image_size).
    """
    config = AugmentationConfig.model_validate(config)
    low, high = config.crop_scale
    jitter = config.color_jitter
    crop = v2.RandomResizedCrop(
        image_size, scale=(low, high), ratio=(0.8, 1.8), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    # Transforms without effect are left out: torchvision's classes draw random numbers and copy even then.
    steps: list[torch.nn.Module] = [crop if low < 1 else ResizeSquare(image_size)]
    if config.flip_probability:
        steps.append(v2.RandomHorizontalFlip(config.flip_probability))
    if jitter:
        steps.append(ColorJitter(jitter, hue=0.1 * jitter))
    if config.trivial_augment_wide.enabled:
        steps.append(v2.TrivialAugmentWide(num_magnitude_bins=config.trivial_augment_wide.num_magnitude_bins))
    if config.aug_mix.enabled:
        mix = config.aug_mix
        steps.append(v2.AugMix(severity=mix.severity, mixture_width=mix.mixture_width, alpha=mix.alpha))
    augment: torch.nn.Module = v2.Compose(steps)
    if p := config.validator_distortion_p:
        augment = RandomApply(ValidatorDistortion(config.validator_levels, image_size), otherwise=augment, p=p)
    erase = [v2.RandomErasing(config.erasing_probability)] if config.erasing_probability else []
    composed: Transform = v2.Compose([augment, *erase])
    return composed


def get_batch_transform(config: AugmentationConfig, *, image_size: int, patch_size: int) -> BatchTransform | None:
    """Return the random transform of training batches: MixUp or CutMix, then a common size; None if without effect."""
    mixers = [v2.MixUp(alpha=config.mixup_alpha, num_classes=N_CLASSES)] if config.mixup_alpha else []
    mixers += [v2.CutMix(alpha=config.cutmix_alpha, num_classes=N_CLASSES)] if config.cutmix_alpha else []
    sizes = [max(1, round(scale * image_size / patch_size)) * patch_size for scale in config.scales]
    if not mixers and sizes == [image_size]:
        return None
    return BatchAugment(mixers, sizes)


def get_val_transforms(*, image_size: int = IMAGE_SIZE, validator_level: Level | None = None) -> Transform:
    """Return the deterministic transform of evaluation images.

    Args:
        image_size: Pixels per side of the result.
        validator_level: Apply the validator's distortions of this level first. They are random, and draw from torch's
            global generator.

    Returns:
        Function uint8 (3, H, W) -> uint8 (3, image_size, image_size).
    """
    if validator_level is None:
        return ResizeSquare(image_size)
    return ValidatorDistortion((validator_level,), image_size)


class ResizeSquare(torch.nn.Module):
    """Resize to a square with any aspect ratio, as the image processor of the subnet does."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        return resize_square(image, self.image_size)


class ValidatorDistortion(torch.nn.Module):
    """The validator's distortions at a random level out of `levels`, then a resize to the size of the model."""

    def __init__(self, levels: tuple[Level, ...], image_size: int) -> None:
        super().__init__()
        self.levels, self.image_size = levels, image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        level = self.levels[int(torch.randint(len(self.levels), ()))]
        return resize_square(distort(image, level), self.image_size)


class RandomApply(torch.nn.Module):
    """Apply `transform` with probability `p`, else `otherwise`."""

    def __init__(self, transform: torch.nn.Module, *, otherwise: torch.nn.Module, p: float) -> None:
        super().__init__()
        self.transform, self.otherwise, self.p = transform, otherwise, p

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, S, S)."""
        transformed: Tensor = (self.transform if float(torch.rand(())) < self.p else self.otherwise)(image)
        return transformed


class BatchAugment:
    """One of several mixers (MixUp, CutMix), then one of several sizes for the whole batch."""

    def __init__(self, mixers: list[torch.nn.Module], sizes: list[int]) -> None:
        self.mixers, self.sizes = mixers, sizes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, S, S), labels (B,) -> uint8 (B, 3, S', S'), labels (B,) or class probabilities (B, 2)."""
        if self.mixers:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            mixed, labels = mixer(images.float(), labels)
            images = mixed.round().to(torch.uint8)
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return (images if size == images.shape[-1] else resize_square(images, size)), labels

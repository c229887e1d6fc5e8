"""Transforms of images before the model: random for training, deterministic for evaluation."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from streetvision.data.config import AugmentationConfig, Level
from streetvision.data.transforms.color import ColorJitter
from streetvision.data.transforms.validator_distortions import distort
from streetvision.io.resize import DecodeSize, ImageSize, as_size, decode_size
from streetvision.io.resize_tensor import fit_tensor, resize_tensor

Transform = Callable[[Tensor], Any]
"""Pixels (3, H, W) -> a tensor, or a named tuple of tensors, with the same shapes for every image."""
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (B, 3, h, w), labels (B,)) -> images, and labels (B,) or class probabilities (B, 2)."""
N_CLASSES = 2
IMAGE_SIZE = 224
CROP_STRETCH = 4 / 3
"""Largest change of the aspect ratio by a random crop."""


def get_train_transforms(
    config: AugmentationConfig | Mapping[str, Any], *, image_size: int | ImageSize = IMAGE_SIZE
) -> Transform:
    """Return the random transform of training images; it draws from torch's global generator.

    Args:
        config: Which transforms are used, and how strong they are; or a mapping of fields of AugmentationConfig.
        image_size: Height and width of the result, or its side if it is square.

    Returns:
        Function uint8 (3, H, W) -> uint8 (3, h, w).
    """
    size = as_size(image_size)
    config = AugmentationConfig.model_validate(config)
    low, high = config.crop_scale
    jitter = config.color_jitter
    # Transforms without effect are left out: torchvision's classes draw random numbers and copy even then.
    steps: list[torch.nn.Module] = [RandomCrop((low, high), size) if low < 1 else Fit(size)]
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
        augment = RandomApply(ValidatorDistortion(config.validator_levels, size), otherwise=augment, p=p)
    erase = [v2.RandomErasing(config.erasing_probability)] if config.erasing_probability else []
    composed: Transform = v2.Compose([augment, *erase])
    return composed


def train_decode_size(config: AugmentationConfig, *, image_size: ImageSize) -> DecodeSize | None:
    """Return the smallest size to which an image may be reduced before `get_train_transforms`; None: it may not be.

    The distortions of the subnet's validator start from the full size.
    """
    if config.validator_distortion_p:
        return None
    share = math.sqrt(config.crop_scale[0] / CROP_STRETCH)  # of a side, in the smallest crop
    return partial(_crop_decode_size, share=share if config.crop_scale[0] < 1 else 1.0, target=image_size)


def _crop_decode_size(image: ImageSize, *, share: float, target: ImageSize) -> ImageSize:
    return decode_size(image, (share * image[0], share * image[1]), target)


def get_batch_transform(config: AugmentationConfig, *, image_size: ImageSize, patch_size: int) -> BatchTransform | None:
    """Return the random transform of training batches: MixUp or CutMix, then a common size; None if without effect."""
    mixers = [v2.MixUp(alpha=config.mixup_alpha, num_classes=N_CLASSES)] if config.mixup_alpha else []
    mixers += [v2.CutMix(alpha=config.cutmix_alpha, num_classes=N_CLASSES)] if config.cutmix_alpha else []
    sizes: list[ImageSize] = []
    for scale in config.scales:
        height, width = (max(1, round(scale * side / patch_size)) * patch_size for side in image_size)
        sizes.append((height, width))
    if not mixers and sizes == [image_size]:
        return None
    return BatchAugment(mixers, sizes)


def get_val_transforms(*, image_size: int | ImageSize = IMAGE_SIZE, validator_level: Level | None = None) -> Transform:
    """Return the deterministic transform of evaluation images.

    Args:
        image_size: Height and width of the result, or its side if it is square.
        validator_level: Apply the validator's distortions of this level first. They are random, and draw from torch's
            global generator.

    Returns:
        Function uint8 (3, H, W) -> uint8 (3, h, w).
    """
    if validator_level is None:
        return Fit(as_size(image_size))
    return ValidatorDistortion((validator_level,), as_size(image_size))


class Fit(torch.nn.Module):
    """Fit an image into the model's input."""

    def __init__(self, image_size: ImageSize) -> None:
        super().__init__()
        self.image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, h, w)."""
        return fit_tensor(image, self.image_size)


class RandomCrop(torch.nn.Module):
    """Fit a random part of an image into the model's input.

    Args:
        scale: Smallest and largest share of the image's area.
        image_size: h, w.
    """

    def __init__(self, scale: tuple[float, float], image_size: ImageSize) -> None:
        super().__init__()
        self.scale, self.image_size = scale, image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, h, w)."""
        height, width = image.shape[-2:]
        low, high = self.scale
        area, stretch, top, left = torch.rand(4).tolist()
        side = math.sqrt(low + (high - low) * area)
        # The aspect ratio of the part differs from the image's by a factor between 1 / CROP_STRETCH and CROP_STRETCH,
        # and by less if a side that ends at the border would leave a smaller area than `low`.
        factor = min(max(math.sqrt(CROP_STRETCH ** (2 * stretch - 1)), low / side), side / low)
        crop_height = max(1, round(height * min(1, side * factor)))
        crop_width = max(1, round(width * min(1, side / factor)))
        top, left = round(top * (height - crop_height)), round(left * (width - crop_width))
        return fit_tensor(image[:, top : top + crop_height, left : left + crop_width], self.image_size)


class ValidatorDistortion(torch.nn.Module):
    """The validator's distortions at a random level out of `levels`, then a resize to the size of the model."""

    def __init__(self, levels: tuple[Level, ...], image_size: ImageSize) -> None:
        super().__init__()
        self.levels, self.image_size = levels, image_size

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, h, w)."""
        level = self.levels[int(torch.randint(len(self.levels), ()))]
        return fit_tensor(distort(image, level), self.image_size)


class RandomApply(torch.nn.Module):
    """Apply `transform` with probability `p`, else `otherwise`."""

    def __init__(self, transform: torch.nn.Module, *, otherwise: torch.nn.Module, p: float) -> None:
        super().__init__()
        self.transform, self.otherwise, self.p = transform, otherwise, p

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, h, w)."""
        transformed: Tensor = (self.transform if float(torch.rand(())) < self.p else self.otherwise)(image)
        return transformed


class BatchAugment:
    """One of several mixers (MixUp, CutMix), then one of several sizes for the whole batch."""

    def __init__(self, mixers: list[torch.nn.Module], sizes: list[ImageSize]) -> None:
        self.mixers, self.sizes = mixers, sizes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, h, w), labels (B,) -> uint8 (B, 3, h', w'), labels (B,) or class probabilities (B, 2)."""
        if self.mixers:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            mixed, labels = mixer(images.float(), labels)
            images = mixed.round().to(torch.uint8)
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return (images if size == tuple(images.shape[-2:]) else resize_tensor(images, size)), labels

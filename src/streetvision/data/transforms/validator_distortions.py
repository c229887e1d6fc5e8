"""Distortions that the subnet's validator applies to an image before it sends a challenge.

A profile names the behavior of the validator since a date. Each level is drawn with equal probability.

jan2026: Level 0 crops and resizes. Level 1 rotates and crops at random. Level 2 also may reduce color, contrast and
    detail. Level 3 does so with two strengths, and may add chroma noise and blur.
apr2026: As jan2026, but with a letterbox (black bars) instead of crops. That the rotation remained is an assumption.
may2026: The unchanged image.

All end with a JPEG of quality 75 with 4:2:0 subsampling.

Shapes: H and W are pixels of the given image, S pixels per side of a challenge.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from streetvision.contracts.errors import unknown_name
from streetvision.data.decode import decode_image
from streetvision.data.transforms.color import LUMA
from streetvision.io.resize_tensor import resize_tensor

CHALLENGE_SIZE = 224
"""Pixels per side of an image that the validator sends."""
JPEG_QUALITY = 75
ROTATION, CROP_SCALE = 20.0, (0.2, 1.0)
"""Largest rotation in degrees, and fraction of the area that a random crop keeps."""
LUMA_WEIGHTS = torch.tensor(LUMA)
"""Weights of red, green and blue in luma (ITU-R BT.601, as in JPEG)."""
CB, CR = 1.772, 1.402
"""Blue is luma + CB * chroma, red is luma + CR * chroma, for chroma in [-0.5, 0.5]."""

Distortion = Callable[[Tensor, float], Tensor]
"""(image, strength) -> image."""
Framing = Callable[[Tensor, int], Tensor]
"""(image, level) -> image of the size that is sent."""


def distort(image: Tensor, level: int, profile: str = "jan2026") -> Tensor:
    """Return the image as the validator would send it; draws from torch's global generator.

    Args:
        image: uint8 (3, H, W).
        level: Level of distortion.
        profile: Key of PROFILES.

    Returns:
        uint8 (3, S, S); for may2026 (3, H, W).

    Raises:
        ConfigError: The profile does not exist, or has no such level.
    """
    if profile not in PROFILES:
        raise unknown_name("challenge profile", profile, PROFILES)
    if level not in PROFILES[profile].levels:
        raise unknown_name("level of distortion", str(level), map(str, PROFILES[profile].levels))
    challenge = PROFILES[profile].framing(image, level)
    for name, choices in STRENGTHS[level].items():
        strength = choices[int(torch.randint(len(choices), ()))]
        challenge = challenge if strength is None else DISTORTIONS[name](challenge, strength)
    return jpeg_round_trip(challenge)


def jpeg_round_trip(image: Tensor) -> Tensor:
    """Encode uint8 (3, H, W) as the validator does, and decode it."""
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(
        written, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0"
    )
    return decode_image(written.getvalue())


def chroma_noise(image: Tensor, variance: float) -> Tensor:
    """Add Gaussian noise to both chroma channels of uint8 (3, H, W); brightness does not change.

    Args:
        image: The image.
        variance: Variance of the noise, for values in [0, 1].
    """
    height, width = image.shape[1:]
    blue, red = variance**0.5 * torch.randn(2, height, width)
    # Green changes so that the luma is constant: the weighted changes of the channels sum to zero.
    green = -(LUMA_WEIGHTS[0] * CR * red + LUMA_WEIGHTS[2] * CB * blue) / LUMA_WEIGHTS[1]
    noisy = image / 255 + torch.stack([CR * red, green, CB * blue])
    return (255 * noisy).round().clamp(0, 255).to(torch.uint8)


def _crop(image: Tensor, level: int) -> Tensor:
    if level == 0:
        return resize_tensor(F.center_crop(image, [min(image.shape[1:])] * 2), (CHALLENGE_SIZE, CHALLENGE_SIZE))
    crop = v2.RandomResizedCrop(CHALLENGE_SIZE, scale=CROP_SCALE, ratio=(1.0, 1.0), antialias=True)
    cropped: Tensor = crop(_rotate(image))
    return cropped


def _letterbox(image: Tensor, level: int) -> Tensor:
    height, width = image.shape[1:]
    inside = [max(1, round(side * CHALLENGE_SIZE / max(height, width))) for side in (height, width)]
    fitted = F.resize(image if level == 0 else _rotate(image), inside, antialias=True)
    top, left = ((CHALLENGE_SIZE - side) // 2 for side in inside)
    boxed: Tensor = F.pad(fitted, [left, top, CHALLENGE_SIZE - inside[1] - left, CHALLENGE_SIZE - inside[0] - top])
    return boxed


def _unchanged(image: Tensor, level: int) -> Tensor:  # noqa: ARG001
    return image


def _rotate(image: Tensor) -> Tensor:
    angle = float(torch.empty(()).uniform_(-ROTATION, ROTATION))
    rotated: Tensor = F.rotate(image, angle, interpolation=InterpolationMode.NEAREST, fill=0)
    return rotated


def _downsample(image: Tensor, factor: float) -> Tensor:
    small, side = int(image.shape[1] / factor), image.shape[1]
    return resize_tensor(resize_tensor(image, (small, small)), (side, side))


def _blur(image: Tensor, kernel: float) -> Tensor:
    blurred: Tensor = F.gaussian_blur(image, [int(kernel)] * 2, [kernel / 6] * 2)
    return blurred


DISTORTIONS: Mapping[str, Distortion] = {
    "saturation": F.adjust_saturation,
    "contrast": F.adjust_contrast,
    "downsample": _downsample,
    "chroma_noise": chroma_noise,
    "blur": _blur,
}
"""Name -> distortion, in the order in which they are applied."""
STRENGTHS: Mapping[int, Mapping[str, Sequence[float | None]]] = {
    0: {},
    1: {},
    2: {"saturation": (None, 0.4), "contrast": (None, 0.85), "downsample": (None, 2)},
    3: {
        "saturation": (None, 0.4, 0.3),
        "contrast": (None, 0.85, 0.725),
        "downsample": (None, 2, 3),
        "chroma_noise": (None, 0.001, 0.002),
        "blur": (None, 7, 9),
    },
}
"""Level -> distortion -> strengths, drawn with equal probability; None: the distortion is skipped."""


@dataclass(frozen=True)
class Profile:
    """Behavior of the validator since a date."""

    framing: Framing
    levels: tuple[int, ...]
    """Drawn with equal probability."""


PROFILES: Mapping[str, Profile] = {
    "jan2026": Profile(_crop, tuple(STRENGTHS)),
    "apr2026": Profile(_letterbox, tuple(STRENGTHS)),
    "may2026": Profile(_unchanged, (0,)),
}
"""Name -> profile, in the order of their dates."""

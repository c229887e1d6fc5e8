"""What the validator of the subnet does to an image before it asks, by the profile of a time; levels 25 % each.

jan2026: level 0 crops and resizes. Level 1 also rotates and crops at random. Level 2 may take away colour, contrast and
detail. Level 3 does so at two strengths, and may add chroma noise and blur. apr2026: the same in a letterbox with black
bars in place of every crop; the rotation is taken to have stayed. may2026: the image as it is. All end as a JPEG of
quality 75 with 4:2:0.

Legend: H and W are pixels of the image that comes, S those of a side of what is sent.
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
from streetvision.data.decode import decode_image, resize_square
from streetvision.data.transforms.color import LUMA

CHALLENGE_SIZE = 224
"""Pixels a side of the image that the validator sends."""
QUALITY = 75
ROTATION, CROP_SCALE = 20.0, (0.2, 1.0)
GREY = torch.tensor(LUMA)
"""Weights of red, green and blue in brightness (ITU-R BT.601, as in JPEG)."""
CB, CR = 1.772, 1.402
"""Blue is luma + CB * chroma, red is luma + CR * chroma, for chroma in [-0.5, 0.5]."""

Step = Callable[[Tensor, float], Tensor]
Frame = Callable[[Tensor, int], Tensor]
"""How a profile fits an image into what is sent at a level."""


def distort(image: Tensor, level: int, profile: str = "jan2026") -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, S, S) as the validator would send it, drawn from torch's global generator.

    may2026 sends (3, H, W). Raises ConfigError for a profile or a level that does not exist.
    """
    if profile not in PROFILES:
        raise unknown_name("challenge profile", profile, PROFILES)
    if level not in PROFILES[profile].levels:
        raise unknown_name("level of distortion", str(level), map(str, PROFILES[profile].levels))
    seen = PROFILES[profile].frame(image, level)
    for name, choices in STRENGTHS[level].items():
        strength = choices[int(torch.randint(len(choices), ()))]
        seen = seen if strength is None else STEPS[name](seen, strength)
    return as_jpeg(seen)


def as_jpeg(image: Tensor) -> Tensor:
    """What comes back when uint8 (3, H, W) is written as the validator writes it and read again."""
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(
        written, "JPEG", quality=QUALITY, subsampling="4:2:0"
    )
    return decode_image(written.getvalue())


def chroma_noise(image: Tensor, variance: float) -> Tensor:
    """Add Gaussian noise of `variance`, for values in [0, 1], to both chroma channels; brightness stays."""
    height, width = image.shape[1:]
    blue, red = variance**0.5 * torch.randn(2, height, width)
    # The change of green is what keeps the luma: weights times changes sum to zero.
    green = -(GREY[0] * CR * red + GREY[2] * CB * blue) / GREY[1]
    moved = image / 255 + torch.stack([CR * red, green, CB * blue])
    return (255 * moved).round().clamp(0, 255).to(torch.uint8)


def _cropped(image: Tensor, level: int) -> Tensor:
    if level == 0:
        return resize_square(F.center_crop(image, [min(image.shape[1:])] * 2), CHALLENGE_SIZE)
    crop = v2.RandomResizedCrop(CHALLENGE_SIZE, scale=CROP_SCALE, ratio=(1.0, 1.0), antialias=True)
    cropped: Tensor = crop(_turned(image))
    return cropped


def _letterboxed(image: Tensor, level: int) -> Tensor:
    height, width = image.shape[1:]
    inside = [max(1, round(side * CHALLENGE_SIZE / max(height, width))) for side in (height, width)]
    fitted = F.resize(image if level == 0 else _turned(image), inside, antialias=True)
    top, left = ((CHALLENGE_SIZE - side) // 2 for side in inside)
    boxed: Tensor = F.pad(fitted, [left, top, CHALLENGE_SIZE - inside[1] - left, CHALLENGE_SIZE - inside[0] - top])
    return boxed


def _as_it_is(image: Tensor, level: int) -> Tensor:  # noqa: ARG001
    return image


def _turned(image: Tensor) -> Tensor:
    angle = float(torch.empty(()).uniform_(-ROTATION, ROTATION))
    turned: Tensor = F.rotate(image, angle, interpolation=InterpolationMode.NEAREST, fill=0)
    return turned


def _down_and_up(image: Tensor, factor: float) -> Tensor:
    return resize_square(resize_square(image, int(image.shape[1] / factor)), image.shape[1])


def _blur(image: Tensor, kernel: float) -> Tensor:
    blurred: Tensor = F.gaussian_blur(image, [int(kernel)] * 2, [kernel / 6] * 2)
    return blurred


STEPS: Mapping[str, Step] = {
    "saturation": F.adjust_saturation,
    "contrast": F.adjust_contrast,
    "downsample": _down_and_up,
    "chroma_noise": chroma_noise,
    "blur": _blur,
}
"""Name -> what it does at a strength."""
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
"""Level -> step -> its strengths, each as likely as the others; None leaves the step out."""


@dataclass(frozen=True)
class Profile:
    """What the validator sent from some time on."""

    frame: Frame
    levels: tuple[int, ...]
    """Each as likely as the others."""


PROFILES: Mapping[str, Profile] = {
    "jan2026": Profile(_cropped, tuple(STRENGTHS)),
    "apr2026": Profile(_letterboxed, tuple(STRENGTHS)),
    "may2026": Profile(_as_it_is, (0,)),
}
"""Name -> profile, the earliest first."""

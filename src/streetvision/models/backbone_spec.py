"""The properties of a backbone apart from its weights, and how untrusted descriptions of them are validated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.io.resize import ImageSize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PARAMETERS = 2_000_000_000
"""Default limit for a backbone that is built from a description in a file."""
MAX_TOKENS = 65_536
"""Largest number of patches of one image: 4,096 pixels per side with patches of 16."""

Channels = tuple[float, float, float]
"""One value each for red, green and blue."""
PositiveChannels = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
SizeRule = Callable[[int, ImageSize], ImageSize]
"""(patch size, size that the backbone was trained with) -> size of its input."""
Description = TypeVar("Description", bound=BaseModel)


class Architecture(BaseModel):
    """Description of a backbone: the fields that all libraries share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: ImageSize
    """Height and width in pixels."""
    mean: Channels
    """Per RGB channel, for pixels in [0, 1]."""
    std: PositiveChannels
    """Per RGB channel, for pixels in [0, 1]."""


@dataclass(frozen=True)
class BackboneSpec:
    """Properties of a backbone that other code depends on."""

    embed_dim: int
    """Width of a token."""
    patch_size: int
    """Pixels per side of the square that becomes one token; for convolutional networks, the total stride."""
    layers: int
    """Number of blocks whose tokens can be read, counted from the last one; 1 where blocks differ in shape."""
    prefix_tokens: int
    """Number of tokens before the first patch: CLS and registers."""
    class_token: bool
    """Whether the first prefix token is a CLS token; some networks have registers only."""
    image_size: ImageSize
    """Height and width of the images that the backbone was built for."""
    mean: Channels
    """Subtracted from pixels in [0, 1], per RGB channel."""
    std: Channels
    """Divides pixels after the mean is subtracted, per RGB channel."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers whose forward runs; LoRA on any other layer would have no effect."""
    architecture: Mapping[str, object]
    """JSON-compatible description; `build_backbone` builds the same network from it, without the weights."""


def native_size(patch_size: int, native: ImageSize) -> ImageSize:  # noqa: ARG001
    """Return the size that the backbone was trained with."""
    return native


def read_description(kind: type[Description], values: Mapping[str, object], *, source: str) -> Description:
    """Validate `values` as a description; raises ArtifactError that names `source` and the first invalid field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{source} is not valid: {field}: {first['msg']}") from error


def one_line(error: Exception) -> str:
    """Return the text of a library's error on one line, for use in a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_image_size(image_size: ImageSize, patch_size: int) -> None:
    """Raise ConfigError unless the patch size divides both sides and there are at most MAX_TOKENS patches."""
    for side in image_size:
        if side <= 0 or side % patch_size:
            below = max(side // patch_size, 1) * patch_size
            sides = sorted({below, below + patch_size} if side > 0 else {patch_size})
            raise ConfigError(
                f"image_size={list(image_size)}: {side} is not a multiple of the backbone's patch size {patch_size}",
                f"nearest valid values: {' and '.join(map(str, sides))}",
            )
    if token_count(image_size, patch_size) > MAX_TOKENS:
        raise ConfigError(
            f"image_size={list(image_size)} with patch size {patch_size} gives more than {MAX_TOKENS} tokens",
            "choose a smaller model.image_size",
        )


def token_count(image_size: ImageSize, patch_size: int) -> int:
    """Return the number of patches of an image."""
    return (image_size[0] // patch_size) * (image_size[1] // patch_size)

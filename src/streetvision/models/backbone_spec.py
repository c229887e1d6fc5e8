"""What is known of a backbone without its weights: its numbers, and how they are read from a stranger's description."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError, ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PARAMETERS = 2_000_000_000
"""What a description from a file may ask for, unless the caller allows more."""
MAX_TOKENS = 65_536
"""Patches of one image: 4,096 pixels at a patch of 16."""

Channels = tuple[float, float, float]
"""One value each for red, green and blue."""
PositiveChannels = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Description = TypeVar("Description", bound=BaseModel)


class Architecture(BaseModel):
    """What the description of a backbone holds, whichever library builds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int
    """Pixels along one side."""
    mean: Channels
    """Per channel, for pixels in [0, 1]."""
    std: PositiveChannels
    """Per channel, for pixels in [0, 1]."""


@dataclass(frozen=True)
class BackboneSpec:
    """What the code around a backbone must know of it."""

    embed_dim: int
    """Width of a token."""
    patch_size: int
    """Pixels along one side of the square that becomes one token; for convolutions, the total stride."""
    prefix_tokens: int
    """Tokens before the first patch: CLS and registers."""
    class_token: bool
    """Whether the first prefix token is a CLS token; some networks have registers only."""
    image_size: int
    """Pixels along the side of the square images it was built for."""
    mean: Channels
    """Subtracted from pixels in [0, 1] before they come in."""
    std: Channels
    """Divides pixels in [0, 1] after the mean is subtracted."""
    lora_targets: tuple[str, ...]
    """Names, from the backbone down, of the linear layers whose forward runs; others would take a LoRA in silence."""
    architecture: Mapping[str, object]
    """JSON-able; `build_backbone` makes the same network from it, without the weights."""


def read_description(kind: type[Description], values: Mapping[str, object], *, source: str) -> Description:
    """The description of a backbone in `values`; raises ArtifactError that names `source` and the first bad field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{source} is not valid: {where}: {first['msg']}") from error


def one_line(error: Exception) -> str:
    """What a library's error says, for a message of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise ConfigError unless whole patches cover the image, and not too many of them."""
    if image_size <= 0 or image_size % patch_size:
        below = max(image_size // patch_size, 1) * patch_size
        sizes = sorted({below, below + patch_size} if image_size > 0 else {patch_size})
        raise ConfigError(
            f"an image size of {image_size} pixels is not a multiple of the backbone's patch of {patch_size}",
            f"the nearest sizes that are: {' and '.join(map(str, sizes))}",
        )
    if (image_size // patch_size) ** 2 > MAX_TOKENS:
        raise ConfigError(
            f"an image size of {image_size} pixels at a patch of {patch_size} makes more than {MAX_TOKENS} tokens",
            "choose a smaller image_size",
        )

"""The properties of a backbone apart from its weights, and how untrusted descriptions of them are validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.contracts.errors import ArtifactError, ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PARAMETERS = 2_000_000_000
"""Default limit for a backbone that is built from a description in a file."""
MAX_TOKENS = 65_536
"""Largest number of patches of one image: 4,096 pixels per side with patches of 16."""

Channels = tuple[float, float, float]
"""One value each for red, green and blue."""
PositiveChannels = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Description = TypeVar("Description", bound=BaseModel)


class Architecture(BaseModel):
    """Description of a backbone: the fields that all libraries share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int
    """Pixels per side."""
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
    prefix_tokens: int
    """Number of tokens before the first patch: CLS and registers."""
    class_token: bool
    """Whether the first prefix token is a CLS token; some networks have registers only."""
    image_size: int
    """Pixels per side of the square images that the backbone was built for."""
    mean: Channels
    """Subtracted from pixels in [0, 1], per RGB channel."""
    std: Channels
    """Divides pixels after the mean is subtracted, per RGB channel."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers whose forward runs; LoRA on any other layer would have no effect."""
    architecture: Mapping[str, object]
    """JSON-compatible description; `build_backbone` builds the same network from it, without the weights."""


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


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise ConfigError unless the patch size divides the image size and there are at most MAX_TOKENS patches."""
    if image_size <= 0 or image_size % patch_size:
        below = max(image_size // patch_size, 1) * patch_size
        sizes = sorted({below, below + patch_size} if image_size > 0 else {patch_size})
        raise ConfigError(
            f"image_size={image_size} is not a multiple of the backbone's patch size {patch_size}",
            f"nearest valid sizes: {' and '.join(map(str, sizes))}",
        )
    if (image_size // patch_size) ** 2 > MAX_TOKENS:
        raise ConfigError(
            f"image_size={image_size} with patch size {patch_size} gives more than {MAX_TOKENS} tokens",
            "choose a smaller image_size",
        )

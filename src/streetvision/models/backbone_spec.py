"""What every backbone is: images in, tokens out, and a record of how to build it again.

Legend: B images, H and W their height and width in pixels, T tokens (prefix and patches), D the width of a token.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

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
Reader = Callable[[nn.Module, Tensor], Tensor]
"""Runs a network on pixel_values (B, 3, H, W) and returns its tokens (B, T, D)."""
Description = TypeVar("Description", bound=BaseModel)


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


class Backbone(nn.Module):
    """A network that turns normalised images into tokens, prefix tokens (CLS, registers) first.

    A DINOv3 ViT in train() mode rescales its positions at random on every call (`pos_embed_rescale`), frozen or not:
    a caller who freezes a backbone must also put it in eval(). Mask tokens never reach the output and ask for no
    gradient.
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, read: Reader) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self._read = read
        # A parameter without a gradient stops distributed training.
        for name, parameter in network.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixel_values (B, 3, H, W), normalised, to tokens (B, T, D); H and W are multiples of the patch.

        A transformers network takes any such size; a timm network with position embeddings only `spec.image_size`.
        Raises ConfigError for a size that the patch does not divide.
        """
        for side in pixel_values.shape[-2:]:
            check_image_size(side, self.spec.patch_size)
        return self._read(self.network, pixel_values)


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


def check_parameters(network: nn.Module, limit: int | None) -> None:
    """Raise ConfigError when `network`, which may lie on the meta device, has more than `limit` parameters."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if limit is not None and count > limit:
        raise ConfigError(
            f"the backbone would have {count:,} parameters, and {limit:,} are allowed here",
            "raise max_parameters if you trust where the description comes from",
        )


@dataclass(frozen=True)
class Probe:
    """What one pass of an empty image through a network on the meta device shows."""

    tokens: int
    embed_dim: int
    called: frozenset[str]
    """Names of the modules whose forward ran."""
    lora_targets: tuple[str, ...]


def probe(network: nn.Module, read: Reader, image_size: int) -> Probe:
    """Run a network that lies on the meta device once: shapes without arithmetic. It is left in eval mode."""
    called: set[str] = set()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad(), torch.device("meta"):
        tokens = read(network.eval(), torch.empty(1, 3, image_size, image_size))  # (1, T, D)
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets = tuple(f"network.{name}" for name in linears if name in called)
    return Probe(tokens.shape[1], tokens.shape[2], frozenset(called), targets)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what is drawn inside on the CPU from `seed`, and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield

"""A backbone as a network: images in, tokens out.

Legend: B images, H and W their height and width in pixels, T tokens (prefix and patches), D the width of a token.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError
from streetvision.models.backbone_spec import BackboneSpec, check_image_size

Reader = Callable[[nn.Module, Tensor], Tensor]
"""Runs a network on pixel_values (B, 3, H, W) and returns its tokens (B, T, D)."""


class Backbone(nn.Module):
    """A network that turns normalised images into tokens, prefix tokens (CLS, registers) first.

    It comes in eval mode. Mask tokens never reach the output and ask for no gradient.
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


def state_digest(module: nn.Module) -> str:
    """sha256 of the state dict: names, dtypes, shapes and bytes, in the order of the names, wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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

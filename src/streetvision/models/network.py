"""The backbone as a network that maps images to tokens.

Shapes: B images, H and W their height and width in pixels, T tokens (prefix and patches), D the width of a token.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ConfigError
from streetvision.io.resize import ImageSize
from streetvision.models.backbone_spec import BackboneSpec, check_image_size

ForwardFn = Callable[[nn.Module, Tensor, int], tuple[Tensor, ...]]
"""(network, pixel_values (B, 3, H, W), L) -> tokens (B, T, D) of each of the last L blocks, the last one at the end."""
ResizeFn = Callable[[nn.Module, ImageSize], nn.Module]
"""(network, size) -> a network for images of this size, which shares the weights of `network`."""


def any_size(network: nn.Module, image_size: ImageSize) -> nn.Module:  # noqa: ARG001
    """Return the network itself, which takes images of any size."""
    return network


class Backbone(nn.Module):
    """A network that maps normalized images to tokens; the prefix tokens (CLS, registers) come first.

    Args:
        network: A network of transformers or timm.
        spec: Its properties.
        forward_fn: How to get the tokens from it.
        resize_fn: How to get a network for images of another size.
    """

    def __init__(
        self, network: nn.Module, spec: BackboneSpec, forward_fn: ForwardFn, resize_fn: ResizeFn = any_size
    ) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self._forward_fn, self._resize_fn = forward_fn, resize_fn
        # Mask tokens do not reach the output, and DDP fails on a trainable parameter without a gradient.
        for name, parameter in network.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor, layers: int = 1) -> tuple[Tensor, ...]:
        """Map normalized pixel_values (B, 3, H, W) to tokens (B, T, D) of each of the last `layers` blocks.

        The final normalization of the network is applied to the tokens of every block.

        H and W are multiples of the patch size, else ConfigError is raised. A transformers network accepts any such
        size, a timm network with position embeddings only `spec.image_size`.
        """
        height, width = pixel_values.shape[-2:]
        check_image_size((height, width), self.spec.patch_size)
        return self._forward_fn(self.network, pixel_values, layers)

    def at_size(self, image_size: ImageSize) -> "Backbone":
        """Return this backbone for images of another size: the same weights, with position embeddings resampled.

        Raises:
            ConfigError: The patch size does not divide the size, or the network takes one size only.
        """
        check_image_size(image_size, self.spec.patch_size)
        architecture = {**self.spec.architecture, "image_size": list(image_size)}
        spec = replace(self.spec, image_size=image_size, architecture=architecture)
        return Backbone(self._resize_fn(self.network, image_size), spec, self._forward_fn, self._resize_fn)


def state_digest(module: nn.Module) -> str:
    """Return the sha256 of a state dict: names, dtypes, shapes and bytes, sorted by name, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        # Flattened first, because a scalar cannot be viewed as bytes.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_parameters(network: nn.Module, limit: int | None) -> None:
    """Raise ConfigError if `network` has more than `limit` parameters; it may be on the meta device."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if limit is not None and count > limit:
        raise ConfigError(
            f"the backbone would have {count:,} parameters; at most {limit:,} are allowed",
            "raise max_parameters if you trust the source of the description",
        )


@dataclass(frozen=True)
class Probe:
    """What one forward pass on the meta device shows about a network."""

    tokens: int
    embed_dim: int
    called: frozenset[str]
    """Names of the modules whose forward ran."""
    lora_targets: tuple[str, ...]


def probe(network: nn.Module, forward_fn: ForwardFn, image_size: ImageSize) -> Probe:
    """Run a network on the meta device once, which gives shapes without computation; leaves it in eval mode."""
    called: set[str] = set()
    for name, module in network.named_modules():
        # The hooks are not removed, because the network on the meta device is discarded.
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad(), torch.device("meta"):
        (tokens,) = forward_fn(network.eval(), torch.empty(1, 3, *image_size), 1)  # (1, T, D)
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets = tuple(f"network.{name}" for name in linears if name in called)
    return Probe(tokens.shape[1], tokens.shape[2], frozenset(called), targets)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator inside the block; afterwards the global generators are as before."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield

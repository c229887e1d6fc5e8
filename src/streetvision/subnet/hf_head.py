"""Shared by the converters: the head as one LayerNorm and one linear map, and the converted classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import JsonValue
from safetensors.torch import load_file
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.resize import ImageSize
from streetvision.models.module import Classifier

State = dict[str, Tensor]
LABELS = {"0": "None", "1": "Roadwork"}
"""Labels that the miner reads by name; they replace the class names of the bundle."""
PINNED = "4.45.2"
"""Version of transformers that the subnet pins."""


@dataclass(frozen=True)
class HFClassifier:
    """A classifier of transformers, without its labels."""

    config: dict[str, JsonValue]
    state: State
    transformers: str = PINNED
    """The first version that loads it."""
    also_needs: str = ""
    """Another package that must be installed there."""

    def ready(self) -> State:
        """The state to save: float32, each tensor contiguous."""
        return {name: value.detach().float().contiguous() for name, value in self.state.items()}


@dataclass(frozen=True)
class LinearHead:
    """logit of class 1 = weight @ norm(token) + bias, where the logit of class 0 is 0."""

    norm: nn.LayerNorm
    weight: Tensor
    """(D,)"""
    bias: float


def linear_head(classifier: Classifier, *, slope: float, cut: float) -> LinearHead:
    """The head for slope * (margin - cut); the margin is our logit of class 1 minus that of class 0.

    Raises ArtifactError for a pooling or head that transformers classifiers do not have.
    """
    description = classifier.description
    if description.pooling != "cls" or description.layers != 1:
        raise ArtifactError(
            f"model.pooling={description.pooling} with model.layers={description.layers} cannot be exported: a "
            "classifier of transformers reads the CLS token of the last block",
            "train with model.pooling=cls model.layers=1 for this export",
        )
    if description.head.kind != "linear":
        raise ArtifactError(
            f"a head of kind {description.head.kind!r} cannot be exported; allowed: linear",
            "train with model.head.kind=linear",
        )
    norm, linear = classifier.head[0], classifier.head[-1]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    weight, offsets = linear.weight.detach(), linear.bias.detach()
    return LinearHead(norm, slope * (weight[1] - weight[0]), slope * (float(offsets[1] - offsets[0]) - cut))


def saved_state(network: Any) -> State:
    """The weights of a transformers network under the names of its saved file."""
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def saved_size(image_size: ImageSize) -> JsonValue:
    """The size of the input as a configuration of transformers stores it: a number for a square."""
    height, width = image_size
    return height if height == width else [height, width]


def check_config(config: Any, expected: Mapping[str, object]) -> None:
    """Raise ArtifactError with the first setting of a backbone that the classifier of transformers does not have."""
    for name, value in expected.items():
        found = getattr(config, name)
        if found != value:
            raise ArtifactError(f"a {config.model_type} with {name} = {found!r} cannot be exported; allowed: {value!r}")

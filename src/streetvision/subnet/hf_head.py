"""What all stock classifiers share: the head as one LayerNorm and one line, and the classifier as it is handed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import JsonValue
from safetensors.torch import load_file
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.models.module import Classifier

State = dict[str, Tensor]
LABELS = {"0": "None", "1": "Roadwork"}
"""What the miner reads by name, whatever the bundle calls its classes."""
PINNED = "4.45.2"
"""Version of transformers that the subnet pins."""


@dataclass(frozen=True)
class Stock:
    """A stock classifier, all but its labels."""

    config: dict[str, JsonValue]
    state: State
    transformers: str = PINNED
    """The version that first loads it."""
    also: str = ""
    """What else must be installed there."""

    def ready(self) -> State:
        """The state as it is saved: float32, each tensor whole in memory."""
        return {name: value.detach().float().contiguous() for name, value in self.state.items()}


@dataclass(frozen=True)
class LinearHead:
    """logit of class 1 = weight @ norm(token) + bias, where the logit of class 0 is 0."""

    norm: nn.LayerNorm
    weight: Tensor
    """(D,)"""
    bias: float


def linear_head(classifier: Classifier, *, slope: float, cut: float) -> LinearHead:
    """The head that says slope * (margin - cut), the margin being our logit of class 1 less that of class 0.

    Raises ArtifactError for a pooling or a head that no stock classifier carries.
    """
    description = classifier.description
    if description.pooling != "cls":
        raise ArtifactError(
            f"no stock classifier carries the pooling {description.pooling!r} with the norm of this head behind it",
            "train with model.pooling=cls for this export",
        )
    if description.head.kind != "linear":
        raise ArtifactError(
            f"no stock classifier carries a head of kind {description.head.kind!r}", "train with model.head.kind=linear"
        )
    norm, linear = classifier.head[0], classifier.head[-1]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    weight, offsets = linear.weight.detach(), linear.bias.detach()
    return LinearHead(norm, slope * (weight[1] - weight[0]), slope * (float(offsets[1] - offsets[0]) - cut))


def saved_state(network: Any) -> State:
    """The weights of a transformers network under the names of its files, whatever they are in memory."""
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def check_config(config: Any, expected: Mapping[str, object]) -> None:
    """Raise ArtifactError that names the first setting of a backbone which the stock classifier has otherwise."""
    for name, value in expected.items():
        found = getattr(config, name)
        if found != value:
            raise ArtifactError(
                f"no stock classifier carries a {config.model_type} with {name} = {found!r}; it has {value!r}"
            )

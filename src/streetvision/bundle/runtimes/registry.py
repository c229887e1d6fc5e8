"""What runs a bundle's backbone: PyTorch, or an exported graph in ONNX Runtime or OpenVINO, behind one interface."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from streetvision.bundle.runtimes.graph import Graph
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.openvino_graph import OpenvinoGraph
from streetvision.contracts.errors import ArtifactError, StreetVisionError
from streetvision.contracts.policies import Precision
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import ImageClassifier

RUNTIMES: Mapping[str, type[Graph]] = {"onnx": OnnxGraph, "openvino": OpenvinoGraph}
"""--runtime -> what writes and runs its graph. A bundle that names none runs in PyTorch."""


class GraphClassifier(ImageClassifier):
    """A classifier whose images go through an exported graph; of PyTorch it keeps the head, which a fusion asks for."""

    def __init__(self, classifier: ImageClassifier, graph: Graph) -> None:
        super().__init__()
        self.description, self.width, self.head = classifier.description, classifier.width, classifier.head
        self._graph = graph

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> features (B, P)."""
        return self._graph(images).features

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> logits (B, 2)."""
        return self._graph(images).logits


def open_graph(classifier: ImageClassifier, folder: Path, *, name: str, precision: Precision) -> GraphClassifier:
    """`classifier` with the graph in `folder` in place of its backbone.

    Raises ConfigError where the runtime is not installed, ArtifactError for a graph that it cannot run or that gives
    something of another shape.
    """
    side = classifier.description.image_size
    try:
        graph = RUNTIMES[name](folder, precision)
        shapes = [tuple(part.shape) for part in graph(torch.zeros(1, 3, side, side, dtype=torch.uint8))]
    except StreetVisionError:
        raise
    except Exception as error:  # on damaged graphs, runtimes raise nearly every type there is
        raise ArtifactError(f"{RUNTIMES[name].files[0]!r} is no graph that {name} runs: {one_line(error)}") from error
    expected = [(1, classifier.width), (1, 2)]
    if shapes != expected:
        raise ArtifactError(
            f"{RUNTIMES[name].files[0]!r} gives features and logits {shapes}, expected {expected}",
            "it belongs to another model; export the bundle again",
        )
    return GraphClassifier(classifier, graph)

"""The runtimes of a bundle's backbone other than PyTorch, behind one interface. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streetvision.bundle.runtimes.graph import Graph, default_threads
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.openvino_graph import OpenvinoGraph
from streetvision.contracts.errors import ArtifactError, StreetVisionError
from streetvision.contracts.policies import Precision
from streetvision.io.resize import ImageSize
from streetvision.models.backbone_spec import one_line

RUNTIMES: Mapping[str, type[Graph]] = {"onnx": OnnxGraph, "openvino": OpenvinoGraph}
"""--runtime -> the class that writes and runs its graph. A bundle without a runtime runs in PyTorch."""


def open_graph(
    folder: Path,
    *,
    name: str,
    precision: Precision,
    image_size: ImageSize,
    feature_dim: int,
    threads: int | None = None,
) -> Graph:
    """Open the graph in `folder` and check its outputs on one image.

    Args:
        folder: Holds the files of the graph.
        name: A name in RUNTIMES.
        precision: Precision of the graph.
        image_size: Height and width of its input.
        feature_dim: Expected width of its features.
        threads: Threads of the runtime; None: `default_threads`.

    Raises:
        ConfigError: The runtime is not installed.
        ArtifactError: The runtime cannot run the graph, or its outputs have other shapes.
    """
    file = RUNTIMES[name].files[0]
    try:
        graph = RUNTIMES[name](folder, precision, threads or default_threads())
        output = graph(np.zeros((1, 3, *image_size), dtype=np.uint8))
        shapes = [part.shape for part in output]
    except StreetVisionError:
        raise
    except Exception as error:  # on damaged graphs, runtimes raise errors of nearly every type
        raise ArtifactError(f"{file!r} is not a graph that {name} can run: {one_line(error)}") from error
    expected = [(1, feature_dim), (1, 2)]
    if shapes != expected:
        raise ArtifactError(
            f"{file!r} returns features and logits of shapes {shapes}, expected {expected}",
            "it belongs to another model; export the bundle again",
        )
    return graph

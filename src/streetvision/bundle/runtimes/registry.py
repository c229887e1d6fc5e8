"""The runtimes of a bundle's backbone other than PyTorch, behind one interface. Does not import torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.runtimes.graph import MODEL, Graph, default_threads
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.openvino_graph import OpenvinoGraph
from streetvision.contracts.errors import ArtifactError, MachineError, StreetVisionError
from streetvision.contracts.policies import Precision
from streetvision.io.resize import ImageSize
from streetvision.models.backbone_spec import one_line

if TYPE_CHECKING:
    import torch

RUNTIMES: Mapping[str, type[Graph]] = {"onnx": OnnxGraph, "openvino": OpenvinoGraph}
"""--runtime -> the class that writes and runs its graph. A bundle without a runtime runs in PyTorch."""


def write_graph(
    program: "torch.export.ExportedProgram",
    folder: Path,
    *,
    name: str,
    precision: Precision,
    images: Sequence[NDArray[np.uint8]],
    part: str = MODEL,
) -> None:
    """Convert a captured network and write the files of its graph.

    Args:
        program: From `capture` or `capture_dense`.
        folder: Destination.
        name: A name in RUNTIMES.
        precision: Precision of the graph.
        images: Images (1, 3, h, w) to calibrate its ranges, for precisions that need them.
        part: MODEL or DENSE.

    Raises:
        ConfigError: The runtime is not installed, or the model cannot have this precision here.
        ArtifactError: The runtime cannot convert the network.
        MachineError: There is too little memory, or the files cannot be written.
    """
    try:
        RUNTIMES[name].write(program, folder, precision, images, part)
    except StreetVisionError:
        raise
    except (MemoryError, OSError) as error:
        raise MachineError(
            f"this machine cannot convert the model for {name}: {one_line(error)}",
            "free memory, and space on the disk of temporary files",
        ) from error
    except Exception as error:  # converters raise errors of nearly every type
        raise ArtifactError(
            f"{name} cannot convert this model to {precision}: {one_line(error)}",
            "set another --runtime or --precision, or use the PyTorch bundle",
        ) from error


def open_graph(
    folder: Path,
    *,
    name: str,
    precision: Precision,
    image_size: ImageSize,
    feature_dim: int,
    threads: int | None = None,
    part: str = MODEL,
) -> Graph:
    """Open the graph in `folder` and check its outputs on one image.

    Args:
        folder: Holds the files of the graph.
        name: A name in RUNTIMES.
        precision: Precision of the graph.
        image_size: Height and width of its input.
        feature_dim: Expected width of its features.
        threads: Threads of the runtime; None: `default_threads`.
        part: MODEL or DENSE.

    Raises:
        ConfigError: The runtime is not installed.
        ArtifactError: The runtime cannot run the graph, or its outputs have other shapes.
        MachineError: There is too little memory, or the file cannot be read.
    """
    file = RUNTIMES[name].files_of(part)[0]
    try:
        graph = RUNTIMES[name](folder, precision, threads or default_threads(), part)
        shapes = [output.shape for output in graph.run(np.zeros((1, 3, *image_size), dtype=np.uint8))]
    except StreetVisionError:
        raise
    except (MemoryError, OSError) as error:
        raise MachineError(
            f"this machine cannot open {file!r} with {name}: {one_line(error)}",
            "free memory, and allow this user to read the file",
        ) from error
    except Exception as error:  # on damaged graphs, runtimes raise errors of nearly every type
        raise ArtifactError(f"{file!r} is not a graph that {name} can run: {one_line(error)}") from error
    # The number of patches depends on the backbone.
    expected = [(1, feature_dim), (1, 2)] if part == MODEL else [(1, *shapes[0][1:2], feature_dim)]
    if shapes != expected:
        raise ArtifactError(
            f"{file!r} returns outputs of shapes {shapes}, expected {expected}",
            "it belongs to another model; export the bundle again",
        )
    return graph

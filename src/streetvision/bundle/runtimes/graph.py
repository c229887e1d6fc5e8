"""The interface of an exported graph: what every runtime offers. Does not import torch.

Shapes: B images of h x w pixels, P width of the features, T patches of a dense pass, Q width of a patch's features.
"""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Precision
from streetvision.io.process_pool import usable_cores
from streetvision.models.backbone_spec import one_line

if TYPE_CHECKING:
    import torch

INPUT, OUTPUTS, DENSE_OUTPUTS = "images", ("features", "logits"), ("patches",)
"""Names of the input and the outputs of a graph, and of the graph of a dense pass."""
MODEL, DENSE = "model", "dense"
"""File names of both without their suffix."""


class GraphOutput(NamedTuple):
    """Result of a graph for B images."""

    features: NDArray[np.float32]
    """(B, P): the input of a fusion of views."""
    logits: NDArray[np.float32]
    """(B, 2)"""


class Graph(ABC):
    """An exported graph: uint8 images -> features and logits, or patches. Normalization is a part of it.

    Args:
        folder: Holds the files of the graph.
        precision: Precision that they were written in.
        threads: Threads of the runtime.
        name: MODEL or DENSE.
    """

    precisions: ClassVar[tuple[Precision, ...]]
    """Precisions that `write` offers."""
    calibrated: ClassVar[frozenset[Precision]] = frozenset()
    """Precisions that need images to calibrate their ranges."""
    files: ClassVar[tuple[str, ...]]
    """File names of MODEL in a bundle; the first one is opened."""
    package: ClassVar[str]
    """Distribution of the runtime; a bundle records its version."""

    @abstractmethod
    def __init__(self, folder: Path, precision: Precision, threads: int, name: str = MODEL) -> None: ...

    def __call__(self, images: NDArray[np.uint8]) -> GraphOutput:
        """Run MODEL on images (B, 3, h, w). Any number of threads may call."""
        return GraphOutput(*self.run(images))

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Run the graph on images (B, 3, h, w): features and logits, or patches (B, T, Q)."""

    @classmethod
    @abstractmethod
    def write(
        cls,
        program: "torch.export.ExportedProgram",
        folder: Path,
        precision: Precision,
        images: Sequence[NDArray[np.uint8]],
        name: str = MODEL,
    ) -> None:
        """Write the files of a captured network.

        Args:
            program: From `capture` or `capture_dense`.
            folder: Destination.
            precision: One of `precisions`.
            images: Images (1, 3, h, w) for the precisions in `calibrated`.
            name: MODEL or DENSE.
        """

    @classmethod
    def files_of(cls, name: str) -> tuple[str, ...]:
        """Return the file names of MODEL or DENSE in a bundle."""
        return tuple(f"{name}{Path(file).suffix}" for file in cls.files)


def output_names(name: str) -> tuple[str, ...]:
    """Return the names of the outputs of MODEL or DENSE."""
    return DENSE_OUTPUTS if name == DENSE else OUTPUTS


def default_threads() -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of CPU cores that this process may use."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) else usable_cores()


def import_extra(module: str, *, install: str) -> Any:
    """Import a module of an optional dependency; raises ConfigError that names what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the runtime needs the module {module}, which cannot be imported: {one_line(error)}",
            f"install it: pip install '{install}'",
        ) from error

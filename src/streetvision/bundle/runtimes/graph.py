"""A classifier as a graph that another runtime executes: how it is captured, and what every runtime offers.

Legend: B images, S pixels a side, P width of the features.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import Precision
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import Classifier

INPUT, OUTPUTS = "images", ("features", "logits")
"""Names of what goes into a graph and of what comes out."""


class Seen(NamedTuple):
    """What a graph makes of B images."""

    features: Tensor
    """(B, P) float32: what a fusion of views takes."""
    logits: Tensor
    """(B, 2) float32."""


class Graph(ABC):
    """A graph on disk, opened: uint8 images in, features and logits out, the normalisation among its operations."""

    precisions: ClassVar[tuple[Precision, ...]]
    """What `write` offers."""
    calibrated: ClassVar[frozenset[Precision]] = frozenset()
    """Precisions whose ranges are taken from images."""
    files: ClassVar[tuple[str, ...]]
    """Names of the files in a bundle, the one that is opened first."""
    package: ClassVar[str]
    """The distribution that runs it, whose version a bundle records."""

    @abstractmethod
    def __init__(self, folder: Path, precision: Precision) -> None:
        """Open the files in `folder` with as many threads as PyTorch would take."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Seen:
        """uint8 (B, 3, S, S) on the CPU -> what is seen in them; any number of threads may call."""

    @classmethod
    @abstractmethod
    def write(
        cls, program: torch.export.ExportedProgram, folder: Path, precision: Precision, images: Sequence[Tensor]
    ) -> None:
        """Write the files of a captured classifier into `folder`; `images`, each (1, 3, S, S), are for `calibrated`."""


class _Both(nn.Module):
    """A classifier that gives features and logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.embed(images)
        return features, self.classifier.head(features)


def capture(classifier: Classifier) -> torch.export.ExportedProgram:
    """The operations from uint8 images (B, 3, S, S), B free, to features and logits.

    Raises ArtifactError for a backbone that torch.export cannot follow.
    """
    side = classifier.description.image_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # of one image, B would be taken for a constant
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            return torch.export.export(_Both(classifier).eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises nearly every type there is
        raise ArtifactError(f"this backbone cannot be captured as a graph: {one_line(error)}") from error


def need(module: str, *, extra: str) -> Any:
    """The imported module; raises ConfigError that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the runtime {extra} needs {module}, which cannot be imported: {one_line(error)}",
            f"install it: pip install 'streetvision[{extra}]'",
        ) from error

"""Capture a PyTorch classifier as a program that the runtimes convert to a graph."""

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.io.resize import ImageSize
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import Classifier, PatchTokens


class _FeaturesAndLogits(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.embed(images)
        return features, self.classifier.head(features)


def capture(classifier: Classifier) -> torch.export.ExportedProgram:
    """Capture the operations from uint8 images (B, 3, h, w), with any B, to features (B, P) and logits (B, 2).

    Raises:
        ArtifactError: torch.export does not support the backbone.
    """
    return _capture(_FeaturesAndLogits(classifier), classifier.description.image_size)


def capture_dense(patches: PatchTokens) -> torch.export.ExportedProgram:
    """Capture the operations of a dense pass, from uint8 images (B, 3, h, w), with any B, to patches (B, T, Q).

    Raises:
        ArtifactError: torch.export does not support the backbone.
    """
    return _capture(patches, patches.backbone.spec.image_size)


def _capture(module: nn.Module, image_size: ImageSize) -> torch.export.ExportedProgram:
    # With one image, B would become a constant.
    example = torch.zeros(2, 3, *image_size, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises errors of nearly every type
        raise ArtifactError(f"this backbone cannot be captured as a graph: {one_line(error)}") from error

"""Capture a PyTorch classifier as a program that the runtimes convert to a graph."""

import torch
from torch import Tensor, nn

from streetvision.contracts.errors import ArtifactError
from streetvision.models.backbone_spec import one_line
from streetvision.models.module import Classifier


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
    # With one image, B would become a constant.
    example = torch.zeros(2, 3, *classifier.description.image_size, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            return torch.export.export(_FeaturesAndLogits(classifier).eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises errors of nearly every type
        raise ArtifactError(f"this backbone cannot be captured as a graph: {one_line(error)}") from error

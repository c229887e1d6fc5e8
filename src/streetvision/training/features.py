"""Caches of backbone features on disk: each split is computed once.

Shapes: N images, V views, P width of the features.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import LoaderConfig
from streetvision.io.atomic import sha256_json
from streetvision.io.manifests import code_sha256
from streetvision.io.scores import rows_digest
from streetvision.io.tensors import load_state, save_tensors
from streetvision.models.device import pick_device
from streetvision.models.fused import FusedClassifier
from streetvision.models.module import Classifier
from streetvision.models.network import state_digest
from streetvision.training.scoring import apply_to_batches, evaluation_loader


class FeatureCache:
    """Features of whole images; a changed backbone, preprocessing, code or list of rows makes a new file."""

    def __init__(self, folder: Path, classifier: Classifier, *, loader: LoaderConfig, progress: Progress) -> None:
        self.folder, self.classifier, self.loader, self.progress = folder, classifier, loader, progress
        self._key = feature_key(classifier)

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> tuple[Tensor, Tensor]:
        """Return features (N, P) float32 and labels (N,) int64 of `rows`, in order."""
        path = self.folder / f"{name}-{sha256_json([self._key, rows_digest(rows)])[:24]}.pt"
        if not path.exists():
            with evaluation_loader(self.classifier, rows, root=root, loader=self.loader) as batches:
                features, labels = apply_to_batches(
                    self.classifier.embed, batches, total=len(batches), label=f"features {name}", progress=self.progress
                )
            save_tensors(path, {"features": features, "labels": labels})
        content = load_state(path)
        return content["features"], content["labels"]


class ViewFeatures(NamedTuple):
    """Features of the views of N images."""

    features: Tensor
    """(N, V, P) float32; 0 where masked."""
    mask: Tensor
    """(N, V) bool; False for a view that repeats an earlier one of the image."""
    content: Tensor
    """(N, V) float32: the share of each view that is image and not padding."""
    labels: Tensor
    """(N,) int64."""

    def select(self, indices: Tensor) -> "ViewFeatures":
        """Return the images at `indices`."""
        return ViewFeatures(*(part[indices] for part in self))


class ViewCache:
    """Features of all views of the images; a change of how images are split into views makes a new file as well."""

    def __init__(self, folder: Path, model: FusedClassifier, *, loader: LoaderConfig, progress: Progress) -> None:
        assert isinstance(model.classifier, Classifier), "fusions are trained with the PyTorch classifier"
        self.folder, self.model, self.loader, self.progress = folder, model, loader, progress
        self._key = [feature_key(model.classifier), model.description.views.model_dump()]

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> ViewFeatures:
        """Return the features of all views of `rows`, in order."""
        path = self.folder / f"views-{name}-{sha256_json([self._key, rows_digest(rows)])[:24]}.pt"
        if not path.exists():
            device, parts = pick_device(), []
            self.model.to(device).eval()
            with (
                torch.inference_mode(),
                evaluation_loader(self.model, rows, root=root, loader=self.loader) as batches,
            ):
                for views, labels in self.progress.track(batches, total=len(batches), label=f"views {name}"):
                    features = self.model.embed(views.to(device, non_blocking=True)).float().cpu()
                    parts.append(ViewFeatures(features, views.mask, self.model.content(views), labels))
            self.model.cpu()
            save_tensors(path, ViewFeatures(*map(torch.cat, zip(*parts, strict=True)))._asdict())
        return ViewFeatures(**load_state(path))


def feature_key(classifier: Classifier) -> list[object]:
    """Return everything that determines the features of an image: code, backbone, weights, pooling, preprocessing."""
    description, backbone = classifier.description, classifier.backbone
    normalisation = [*classifier.mean.flatten().tolist(), *classifier.std.flatten().tolist()]
    network = [dict(backbone.spec.architecture), state_digest(backbone)]
    return [code_sha256(), *network, description.image_size, description.pooling, description.layers, *normalisation]

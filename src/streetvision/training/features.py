"""Backbone features of a split, computed once and kept on disk.

Legend: N images, V views, P width of the features.
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
from streetvision.training.scoring import evaluation_loader, run_over


class FeatureCache:
    """Features by backbone digest, preprocessing and rows: a change of any of them is another file."""

    def __init__(self, folder: Path, classifier: Classifier, *, loader: LoaderConfig, progress: Progress) -> None:
        self.folder, self.classifier, self.loader, self.progress = folder, classifier, loader, progress
        self._model_key = model_key(classifier)

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> tuple[Tensor, Tensor]:
        """Features (N, P) float32 and labels (N,) int64 of `rows`, in order."""
        path = self.folder / f"{name}-{sha256_json([self._model_key, rows_digest(rows)])[:24]}.pt"
        if not path.exists():
            with evaluation_loader(self.classifier, rows, root=root, loader=self.loader) as batches:
                features, labels = run_over(
                    self.classifier.embed, batches, total=len(batches), label=f"features {name}", progress=self.progress
                )
            save_tensors(path, {"features": features, "labels": labels})
        content = load_state(path)
        return content["features"], content["labels"]


class SeenViews(NamedTuple):
    """What the backbone made of the views of N images."""

    features: Tensor
    """(N, V, P) float32; 0 where masked."""
    mask: Tensor
    """bool (N, V): whether the view holds anything."""
    content: Tensor
    """(N, V) float32: the share of it that is not padding."""
    labels: Tensor
    """(N,) int64."""

    def rows(self, chosen: Tensor) -> "SeenViews":
        """Some of the images, by position."""
        return SeenViews(*(part[chosen] for part in self))


class ViewCache:
    """The same of all views of an image; how images are cut decides the file besides."""

    def __init__(self, folder: Path, model: FusedClassifier, *, loader: LoaderConfig, progress: Progress) -> None:
        assert isinstance(model.classifier, Classifier), "what a run fuses is in PyTorch"
        self.folder, self.model, self.loader, self.progress = folder, model, loader, progress
        self._key = [model_key(model.classifier), model.description.views.model_dump()]

    def seen(self, rows: tuple[Row, ...], *, root: Path, name: str) -> SeenViews:
        """The views of `rows`, in order."""
        path = self.folder / f"views-{name}-{sha256_json([self._key, rows_digest(rows)])[:24]}.pt"
        if not path.exists():
            save_tensors(path, self._look(rows, root, name)._asdict())
        return SeenViews(**load_state(path))

    @torch.inference_mode()
    def _look(self, rows: tuple[Row, ...], root: Path, name: str) -> SeenViews:
        device, parts = pick_device(), []
        self.model.to(device).eval()
        with evaluation_loader(self.model, rows, root=root, loader=self.loader) as batches:
            for views, labels in self.progress.track(batches, total=len(batches), label=f"views {name}"):
                features = self.model.embed(views.to(device, non_blocking=True)).float().cpu()
                parts.append(SeenViews(features, views.mask, self.model.content(views), labels))
        self.model.cpu()
        return SeenViews(*map(torch.cat, zip(*parts, strict=True)))


def model_key(classifier: Classifier) -> list[object]:
    """What decides the features of an image: code, the backbone with its weights, its pooling and the preprocessing."""
    described, backbone = classifier.description, classifier.backbone
    normalised = [*classifier.mean.flatten().tolist(), *classifier.std.flatten().tolist()]
    network = [dict(backbone.spec.architecture), state_digest(backbone)]
    return [code_sha256(), *network, described.image_size, described.pooling, *normalised]

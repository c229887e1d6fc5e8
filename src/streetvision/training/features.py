"""Caches of backbone features on disk: each image is computed once.

Shapes: N images, V views, P width of the features, T patches of a dense pass, Q width of a patch's features.
"""

from abc import ABC, abstractmethod
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
from streetvision.models.multi_view import EmbeddedViews
from streetvision.models.network import state_digest
from streetvision.training.scoring import apply_to_batches, evaluation_loader

DIGESTS = "digests"
"""Name in a cache file of the digests of its images, uint8 (N, 32)."""


class _ImageCache(ABC):
    """Tensors by image, in one file for each set of rows that was computed at once.

    A changed backbone, preprocessing or code changes the key, and so makes new files.
    """

    def __init__(self, folder: Path, key: object, *, loader: LoaderConfig, progress: Progress) -> None:
        self.folder, self.key = folder, sha256_json(key)[:24]
        self.loader, self.progress = loader, progress

    @abstractmethod
    def _compute(self, rows: tuple[Row, ...], *, root: Path, name: str) -> dict[str, Tensor]:
        """Tensors (N, ...) of `rows`, by name."""

    def _read(self, rows: tuple[Row, ...], *, root: Path, name: str) -> dict[str, Tensor]:
        """Return the tensors of `rows` in order, after computing those of images that are in no file."""
        files = [load_state(path) for path in sorted(self.folder.glob(f"{self.key}-*.pt"))]
        known = {digest for file in files for digest in _digests(file)}
        if missing := tuple({row.sha256: row for row in rows if bytes.fromhex(row.sha256) not in known}.values()):
            new = self._compute(missing, root=root, name=name)
            digests = b"".join(bytes.fromhex(row.sha256) for row in missing)
            new[DIGESTS] = torch.frombuffer(bytearray(digests), dtype=torch.uint8).reshape(-1, 32)
            save_tensors(self.folder / f"{self.key}-{rows_digest(missing)[:24]}.pt", new)
            files.append(new)
        position = {digest: at for at, digest in enumerate(digest for file in files for digest in _digests(file))}
        order = torch.tensor([position[bytes.fromhex(row.sha256)] for row in rows], dtype=torch.int64)
        names = [key for key in files[0] if key != DIGESTS]
        return {key: torch.cat([file[key] for file in files])[order] for key in names}


class FeatureCache(_ImageCache):
    """Features of whole images."""

    def __init__(self, folder: Path, classifier: Classifier, *, loader: LoaderConfig, progress: Progress) -> None:
        super().__init__(folder, feature_key(classifier), loader=loader, progress=progress)
        self.classifier = classifier

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> tuple[Tensor, Tensor]:
        """Return features (N, P) float32 and labels (N,) int64 of `rows`, in order; `name` labels the progress bar."""
        features = self._read(rows, root=root, name=name)["features"]
        return features, _labels(rows)

    def _compute(self, rows: tuple[Row, ...], *, root: Path, name: str) -> dict[str, Tensor]:
        with evaluation_loader(self.classifier, rows, root=root, loader=self.loader) as batches:
            features, _ = apply_to_batches(
                self.classifier.embed, batches, total=len(batches), label=f"features {name}", progress=self.progress
            )
        return {"features": features}


class ViewFeatures(NamedTuple):
    """Features of the views of N images."""

    features: Tensor
    """(N, V, P) float32; 0 where masked."""
    mask: Tensor
    """(N, V) bool; False for a view that repeats an earlier one of the image."""
    content: Tensor
    """(N, V) float32: the share of each view that is image and not padding."""
    patches: Tensor
    """(N, T, Q) float16 of the dense pass; T = 0 without one."""
    patch_mask: Tensor
    """(N, T) bool; False for patches of padding."""
    labels: Tensor
    """(N,) int64."""

    @property
    def embedded(self) -> EmbeddedViews:
        """The features without the labels."""
        return EmbeddedViews(*self[:-1])

    def select(self, indices: Tensor) -> "ViewFeatures":
        """Return the images at `indices`."""
        return ViewFeatures(*(part[indices] for part in self))


class ViewCache(_ImageCache):
    """Features of all views of the images; a change of how images are split into views changes the key as well."""

    def __init__(self, folder: Path, model: FusedClassifier, *, loader: LoaderConfig, progress: Progress) -> None:
        assert isinstance(model.classifier, Classifier), "fusions are trained with the PyTorch classifier"
        views = model.description.model_dump(mode="json", include={"views", "dense_size"})
        key = [feature_key(model.classifier), views]
        super().__init__(folder, key, loader=loader, progress=progress)
        self.model = model

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> ViewFeatures:
        """Return the features of all views of `rows`, in order; `name` labels the progress bar."""
        return ViewFeatures(**self._read(rows, root=root, name=name), labels=_labels(rows))

    def _compute(self, rows: tuple[Row, ...], *, root: Path, name: str) -> dict[str, Tensor]:
        device = pick_device()
        parts: dict[str, list[Tensor]] = {name: [] for name in EmbeddedViews._fields}
        self.model.to(device).eval()
        with torch.inference_mode(), evaluation_loader(self.model, rows, root=root, loader=self.loader) as batches:
            for views, _ in self.progress.track(batches, total=len(batches), label=f"views {name}"):
                embedded = self.model.embed(views.to(device, non_blocking=True))
                embedded = embedded._replace(features=embedded.features.float(), patches=embedded.patches.half())
                for part, value in embedded._asdict().items():
                    parts[part].append(value.cpu())
        self.model.cpu()
        return {key: torch.cat(values) for key, values in parts.items()}


def feature_key(classifier: Classifier) -> list[object]:
    """Return everything that determines the features of an image: code, backbone, weights, pooling, preprocessing."""
    description, backbone = classifier.description, classifier.backbone
    normalisation = [*classifier.mean.flatten().tolist(), *classifier.std.flatten().tolist()]
    network = [dict(backbone.spec.architecture), state_digest(backbone)]
    preprocessing = [description.image_size, description.preprocessing, *normalisation]
    return [code_sha256(), *network, *preprocessing, description.pooling, description.layers]


def _digests(file: dict[str, Tensor]) -> list[bytes]:
    return [bytes(digest) for digest in file[DIGESTS].tolist()]


def _labels(rows: tuple[Row, ...]) -> Tensor:
    return torch.tensor([row.label for row in rows], dtype=torch.int64)

"""Backbone features of a split, computed once and kept on disk."""

from pathlib import Path

from torch import Tensor

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row
from streetvision.data.datamodule import LoaderConfig
from streetvision.io.atomic import sha256_json
from streetvision.io.scores import rows_digest
from streetvision.io.tensors import load_state, save_tensors
from streetvision.models.backbone import state_digest
from streetvision.models.module import Classifier
from streetvision.training.predict import evaluation_loader, run_over


class FeatureCache:
    """Features by backbone digest, preprocessing and rows: a change of any of them is another file."""

    def __init__(self, folder: Path, classifier: Classifier, *, loader: LoaderConfig, progress: Progress) -> None:
        self.folder, self.classifier, self.loader, self.progress = folder, classifier, loader, progress
        described = classifier.description
        preprocessing = [described.image_size, described.pooling, *classifier.mean.flatten().tolist()]
        self._model_key = [state_digest(classifier.backbone), *preprocessing, *classifier.std.flatten().tolist()]

    def features(self, rows: tuple[Row, ...], *, root: Path, name: str) -> tuple[Tensor, Tensor]:
        """Features (N, P) float32 and labels (N,) int64 of `rows`, in order."""
        path = self.folder / f"{name}-{sha256_json([self._model_key, rows_digest(rows)])[:24]}.pt"
        if not path.exists():
            batches = evaluation_loader(self.classifier, rows, root=root, loader=self.loader)
            features, labels = run_over(
                self.classifier.embed, batches, total=len(batches), label=f"features {name}", progress=self.progress
            )
            save_tensors(path, {"features": features, "labels": labels})
        content = load_state(path)
        return content["features"], content["labels"]

"""Other tools that classify images, each used as its documentation shows: they are compared with this product.

A tool gets the images outside an outer fold with their labels, and predicts the fold. It decides at 0.5.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.models.backbone import BackboneConfig
from streetvision.pipeline.settings import RunConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH_SIZE = 16
CROP = (0.7, 1.0)
"""Area of a random crop: the default of timm, from 0.08, cuts small objects off."""
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class PeerTask:
    """What a tool trains on and predicts."""

    train: tuple[Row, ...]
    test: tuple[Row, ...]
    root: Path
    """Folder that the paths of the rows are relative to."""
    config: RunConfig
    """Backbone, loader and seed of this product."""
    epochs: int
    """Passes over the images, for tools that fine-tune."""
    folder: Path
    """For files of the tool."""

    @property
    def timm(self) -> BackboneConfig:
        """The backbone, which all tools can load."""
        backbone = self.config.model.backbone
        if backbone.source != "timm" or backbone.weights is None:
            raise ConfigError(
                f"other tools cannot load model.backbone.source={backbone.source}",
                "set model.backbone.source=timm and model.backbone.weights to a file",
            )
        return backbone

    @property
    def seed(self) -> int:
        """Seed of weights and order."""
        return self.config.pipeline.seed


def finetune_with_timm(task: PeerTask) -> Probabilities:
    """Fine-tune all weights in a plain loop: AdamW, one cycle, and timm's augmentation at the native size."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(task.seed)
    model = _pretrained(task.timm)
    images = _images(task.train, task.root, _transform(model, training=True))
    batches = torch.utils.data.DataLoader(images, BATCH_SIZE, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=task.epochs * len(batches))
    model.train()
    for _ in range(task.epochs):
        for pixels, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(pixels), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return _predict(model, _images(task.test, task.root, _transform(model, training=False)))


def finetune_with_trainer(task: PeerTask) -> Probabilities:
    """Fine-tune all weights with the Trainer of Hugging Face, at its default learning rate and schedule."""
    import torch
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, Trainer, TrainingArguments

    torch.manual_seed(task.seed)
    source = _pretrained(task.timm)
    config = TimmWrapperConfig(architecture=str(task.timm.name), num_labels=2)  # type: ignore[call-arg]
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(source.state_dict())

    def collate(rows: Sequence[tuple["torch.Tensor", int]]) -> dict[str, "torch.Tensor"]:
        return {
            "pixel_values": torch.stack([pixels for pixels, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        }

    arguments = TrainingArguments(
        output_dir=str(task.folder),
        num_train_epochs=task.epochs,
        per_device_train_batch_size=BATCH_SIZE,
        seed=task.seed,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    train = _images(task.train, task.root, _transform(source, training=True))
    trainer = Trainer(model=model, args=arguments, train_dataset=train, data_collator=collate)
    trainer.train()
    test = _images(task.test, task.root, _transform(source, training=False))
    logits = torch.from_numpy(trainer.predict(test).predictions)
    return logits.double().softmax(1)[:, 1].numpy()


def finetune_with_lightly_train(task: PeerTask) -> Probabilities:
    """Fine-tune all weights with lightly-train, with its settings but for the number of steps and the precision."""
    lightly_train: Any = import_module("lightly_train")
    folder, names = task.folder / "images", ("0", "1")
    for number, row in enumerate(task.train):
        link = folder / names[row.label] / f"{number:06d}{Path(row.path).suffix.lower()}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to((task.root / row.path).absolute())
    backbone = task.timm
    lightly_train.train_image_classification(
        out=task.folder / "out",
        data={"train": str(folder), "val": str(folder), "classes": dict(enumerate(names))},
        model=f"timm/{backbone.name}",
        model_args={
            "backbone_args": {"pretrained": True, "pretrained_cfg_overlay": {"file": str(backbone.weights)}},
        },
        steps=max(1, task.epochs * math.ceil(len(task.train) / BATCH_SIZE)),
        batch_size=BATCH_SIZE,
        precision="32-true",
        num_workers=0,
        seed=task.seed,
        logger_args={"tensorboard": None},
        overwrite=True,
    )
    model = lightly_train.load_model(task.folder / "out" / "exported_models" / "exported_last.pt")
    scores = [model.predict(str(task.root / row.path), topk=2) for row in task.test]
    return np.array([float(s["scores"][list(map(int, s["labels"])).index(1)]) for s in scores])


def fit_with_scikit_learn(task: PeerTask) -> Probabilities:
    """Fit scikit-learn's logistic regression, its penalty chosen by cross-validation, to this product's features."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from streetvision.models.module import load_classifier
    from streetvision.pipeline.input_size import input_size
    from streetvision.pipeline.probe_head import FeatureReader
    from streetvision.training.features import FeatureCache

    config = task.config
    backbone = load_classifier(config.model, input_size(config.model, task.train)).backbone
    reader = FeatureReader.of(backbone, config.model)
    cache = FeatureCache(task.folder / "features", reader.classifier, loader=config.loader, progress=Silent())
    train, labels = cache.features(task.train, root=task.root, name="train")
    test, _ = cache.features(task.test, root=task.root, name="test")
    regression = LogisticRegressionCV(
        Cs=10, cv=5, l1_ratios=(0,), scoring="neg_log_loss", max_iter=1000, use_legacy_attributes=False
    )
    fitted = make_pipeline(StandardScaler(), regression).fit(train.numpy(), labels.numpy())
    return np.asarray(fitted.predict_proba(test.numpy())[:, 1], dtype=np.float64)


@dataclass(frozen=True)
class Peer:
    """Another tool."""

    package: str
    """Name of its distribution."""
    predict: Callable[[PeerTask], Probabilities]

    @property
    def version(self) -> str | None:
        """The version; None if the tool is not installed."""
        if find_spec(self.package.replace("-", "_").replace("scikit_learn", "sklearn")) is None:
            return None
        return metadata.version(self.package)


PEERS: Mapping[str, Peer] = {
    "timm": Peer("timm", finetune_with_timm),
    "transformers": Peer("transformers", finetune_with_trainer),
    "lightly-train": Peer("lightly-train", finetune_with_lightly_train),
    "scikit-learn": Peer("scikit-learn", fit_with_scikit_learn),
}
"""Name in a table of systems -> tool."""


def _pretrained(backbone: BackboneConfig) -> "nn.Module":
    import timm

    return timm.create_model(
        str(backbone.name),
        pretrained=True,
        pretrained_cfg_overlay={"file": str(backbone.weights)},
        num_classes=2,
    )


def _transform(model: "nn.Module", *, training: bool) -> Any:
    """The transform of timm that suits a model."""
    data: Any = import_module("timm.data")
    settings = data.resolve_model_data_config(model)
    return (
        data.create_transform(**settings, is_training=True, scale=CROP)
        if training
        else data.create_transform(**settings)
    )


def _images(rows: Sequence[Row], root: Path, transform: Any) -> "torch.utils.data.Dataset[tuple[torch.Tensor, int]]":
    """The images as tools of this kind read them: with Pillow, by path."""
    from PIL import Image
    from torch.utils.data import Dataset

    class Images(Dataset[tuple["torch.Tensor", int]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> tuple["torch.Tensor", int]:
            with Image.open(root / rows[index].path) as image:
                return transform(image.convert("RGB")), rows[index].label

    return Images()


def _predict(model: "nn.Module", images: "torch.utils.data.Dataset[tuple[torch.Tensor, int]]") -> Probabilities:
    import torch

    model.eval()
    with torch.inference_mode():
        batches = torch.utils.data.DataLoader(images, BATCH_SIZE)
        p = torch.cat([model(pixels).double().softmax(1)[:, 1] for pixels, _ in batches])
    return p.numpy()

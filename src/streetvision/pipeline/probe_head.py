"""The probe of phase 1: the classifier with a solved head on its frozen backbone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.tensors import load_into, load_state, save_tensors
from streetvision.models.config import AUTO, ModelConfig
from streetvision.models.losses import class_weights
from streetvision.models.module import Classifier
from streetvision.models.network import Backbone
from streetvision.models.pooling import POOLINGS
from streetvision.pipeline.scores import cached_features
from streetvision.training.config import TrainingConfig
from streetvision.training.probe import FeatureBank, LinearProbe, Representation, fit_probe

POOLING_CHOICES = ("cls_mean", "cls")
LAYER_CHOICES = (6, 1)
"""model.pooling=auto and model.layers=auto: the choices, the preferred one first."""


@dataclass(frozen=True)
class FeatureReader:
    """A classifier that reads all features which the choices of a probe need, in one pass."""

    classifier: Classifier
    representations: tuple[Representation, ...]
    """The choices, the preferred one first."""

    @property
    def pooling(self) -> str:
        """The poolings of the features."""
        return self.classifier.description.pooling

    @property
    def layers(self) -> int:
        """The number of blocks of the features."""
        return self.classifier.layers

    @classmethod
    def of(cls, backbone: Backbone, model: ModelConfig) -> "FeatureReader":
        """Return the reader for a backbone; pooling and layers have several choices where these are auto."""
        poolings = [model.pooling]
        if model.pooling == AUTO:
            poolings = list(POOLING_CHOICES) if backbone.spec.class_token else ["mean"]
        layers = (
            [model.layers]
            if isinstance(model.layers, int)
            else sorted({min(n, backbone.spec.layers) for n in LAYER_CHOICES}, reverse=True)
        )
        widest = "_".join(part for part in POOLINGS if any(part in pooling.split("_") for pooling in poolings))
        return cls(
            Classifier(backbone, pooling=widest, head=model.head, layers=layers[0], preprocessing=model.preprocessing),
            tuple(Representation(pooling, count) for count in layers for pooling in poolings),
        )


@dataclass(frozen=True)
class ProbeResult:
    """A classifier whose head is a fitted probe."""

    classifier: Classifier
    probe: LinearProbe
    reader: FeatureReader
    train_loss: float
    """Mean loss of TRAIN."""

    def logits(self, context: Context, split: Split) -> Tensor:
        """Return the logits (N, 2) of a split, from the cached features."""
        features, _ = cached_features(context, self.reader.classifier, split)
        return self._logits(features)

    def _logits(self, features: Tensor) -> Tensor:
        bank = FeatureBank(features.numpy(), self.reader.pooling, self.reader.layers)
        return two_logits(bank.read(self.probe.chosen.representation) @ self.probe.weight + self.probe.bias)


def fit_probe_head(
    classifier: Classifier, context: Context, *, representation: Representation | None = None
) -> ProbeResult:
    """Fit a head to the features of TRAIN, choose pooling and layers where these are auto, and write this choice.

    Under cross_fit, outside the folds, the head is the mean of one head for each fold, which did not see its images.

    Args:
        classifier: Its backbone is used; it is frozen and does not change.
        context: Context of phase 1.
        representation: The features that the head reads, of those that the settings allow, chosen before; None: they
            are chosen, and probe.json and the head are written.
    """
    model, config = context.settings(ModelConfig), context.settings(TrainingConfig)
    backbone, rows = classifier.backbone, context.rows(Split.TRAIN)
    reader = FeatureReader.of(backbone, model)
    if representation is not None:
        reader = replace(reader, representations=(representation,))
    train, labels = cached_features(context, reader.classifier, Split.TRAIN)
    probe = fit_probe(
        FeatureBank(train.numpy(), reader.pooling, reader.layers),
        labels.numpy(),
        [row.group or row.sha256 for row in rows],
        representations=reader.representations,
        class_weights=lambda of_rows: class_weights(config.loss, of_rows.tolist()),
        seed=config.seed,
        progress=context.progress,
        folds=np.array(context.fold_of_rows) if context.n_folds > 0 else None,
    )
    chosen = probe.chosen.representation
    solved = Classifier(
        backbone,
        pooling=chosen.pooling,
        head=model.head,
        layers=chosen.layers,
        preprocessing=model.preprocessing,
    )
    set_head(solved, probe.weight, probe.bias)
    if representation is None:
        save_tensors(context.schema.probe_head, solved.head.state_dict())
        write_json_atomic(
            context.schema.probe_json,
            {
                "pooling": chosen.pooling,
                "layers": chosen.layers,
                "strength": probe.chosen.strength,
                "candidates": [
                    {
                        "pooling": candidate.representation.pooling,
                        "layers": candidate.representation.layers,
                        "strength": candidate.strength,
                        "nll": candidate.nll,
                        "difference": candidate.difference,
                        "standard_error": candidate.standard_error,
                    }
                    for candidate in probe.candidates
                ],
            },
        )
    result = ProbeResult(solved, probe, reader, train_loss=0.0)
    return replace(result, train_loss=float(cross_entropy(result._logits(train), labels)))


def open_probe_head(classifier: Classifier, context: Context) -> Classifier:
    """The classifier with the probe that rank 0 has fitted, on any other rank."""
    probe: Any = read_json(context.schema.probe_json)
    solved = Classifier(
        classifier.backbone,
        pooling=str(probe["pooling"]),
        head=context.settings(ModelConfig).head,
        layers=int(probe["layers"]),
        preprocessing=classifier.description.preprocessing,
    )
    load_into(solved.head, load_state(context.schema.probe_head), source=str(context.schema.probe_head))
    return solved


def set_head(classifier: Classifier, weight: NDArray[np.float64], bias: float) -> None:
    """Write a probe (P,) into the head, whose logits are then -margin / 2 and margin / 2."""
    norm, linear = classifier.head[0], classifier.head[-1]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    half = torch.from_numpy(weight).float() / 2
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.zero_()
        linear.weight.copy_(torch.stack([-half, half]))
        linear.bias.copy_(torch.tensor([-bias / 2, bias / 2]))


def two_logits(margins: NDArray[np.float64]) -> Tensor:
    """Return the logits (N, 2) of both classes for margins (N,) of class 1 over class 0."""
    half = torch.from_numpy(margins).float() / 2
    return torch.stack([-half, half], dim=1)

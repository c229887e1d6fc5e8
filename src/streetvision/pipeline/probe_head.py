"""The probe of phase 1: the classifier with a solved head on its frozen backbone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.io.tensors import load_into, load_state, save_tensors
from streetvision.models.config import AUTO, ModelConfig
from streetvision.models.losses import class_weights
from streetvision.models.module import Classifier
from streetvision.models.pooling import POOLINGS
from streetvision.pipeline.scores import cached_features
from streetvision.training.config import TrainingConfig
from streetvision.training.probe import FeatureBank, LinearProbe, Representation, fit_probe

POOLING_CHOICES = ("cls_mean", "cls")
LAYER_CHOICES = (6, 1)
"""model.pooling=auto and model.layers=auto: the choices, the preferred one first."""


@dataclass(frozen=True)
class ProbeResult:
    """A classifier whose head is a fitted probe."""

    classifier: Classifier
    probe: LinearProbe
    train_loss: float
    """Mean loss of TRAIN."""
    select_logits: Tensor
    """(N, 2) of VAL_SELECT."""
    select_labels: Tensor
    """(N,)."""


def fit_probe_head(classifier: Classifier, context: Context) -> ProbeResult:
    """Fit a head to the features of TRAIN, choose pooling and layers where these are auto, and write probe.json.

    Args:
        classifier: Its backbone is used; it is frozen and does not change.
        context: Of phase 1.
    """
    model, config = context.settings(ModelConfig), context.settings(TrainingConfig)
    backbone, rows = classifier.backbone, context.rows(Split.TRAIN)
    poolings = [model.pooling]
    if model.pooling == AUTO:
        poolings = list(POOLING_CHOICES) if backbone.spec.class_token else ["mean"]
    layers = (
        [model.layers]
        if isinstance(model.layers, int)
        else sorted({min(n, backbone.spec.layers) for n in LAYER_CHOICES}, reverse=True)
    )
    # All choices are read from the features of one pass.
    widest = "_".join(part for part in POOLINGS if any(part in pooling.split("_") for pooling in poolings))
    reader = Classifier(backbone, pooling=widest, head=model.head, layers=layers[0])
    train, labels = cached_features(context, reader, Split.TRAIN)
    select, select_labels = cached_features(context, reader, Split.VAL_SELECT)
    probe = fit_probe(
        FeatureBank(train.numpy(), widest, layers[0]),
        labels.numpy(),
        [row.group or row.sha256 for row in rows],
        representations=[Representation(pooling, count) for count in layers for pooling in poolings],
        class_weights=class_weights(config.loss, labels.tolist()),
        seed=config.seed,
        progress=context.progress,
    )
    chosen = probe.chosen.representation
    solved = Classifier(backbone, pooling=chosen.pooling, head=model.head, layers=chosen.layers)
    set_head(solved, probe)
    save_tensors(context.schema.probe_head, solved.head.state_dict())
    banks = [FeatureBank(features.numpy(), widest, layers[0]).read(chosen) for features in (train, select)]
    train_logits, select_logits = (_logits(probe, features) for features in banks)
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
    train_loss = float(torch.nn.functional.cross_entropy(train_logits, labels))
    return ProbeResult(solved, probe, train_loss, select_logits, select_labels)


def open_probe_head(classifier: Classifier, context: Context) -> Classifier:
    """The classifier with the probe that rank 0 has fitted, on any other rank."""
    probe: Any = read_json(context.schema.probe_json)
    solved = Classifier(
        classifier.backbone,
        pooling=str(probe["pooling"]),
        head=context.settings(ModelConfig).head,
        layers=int(probe["layers"]),
    )
    load_into(solved.head, load_state(context.schema.probe_head), source=str(context.schema.probe_head))
    return solved


def set_head(classifier: Classifier, probe: LinearProbe) -> None:
    """Write the probe into the head, whose logits are then -margin / 2 and margin / 2."""
    norm, linear = classifier.head[0], classifier.head[-1]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    weight = torch.from_numpy(probe.weight).float() / 2
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.zero_()
        linear.weight.copy_(torch.stack([-weight, weight]))
        linear.bias.copy_(torch.tensor([-probe.bias / 2, probe.bias / 2]))


def _logits(probe: LinearProbe, features: NDArray[np.float64]) -> Tensor:
    margins = torch.from_numpy(features @ probe.weight + probe.bias).float()
    return torch.stack([-margins / 2, margins / 2], dim=1)

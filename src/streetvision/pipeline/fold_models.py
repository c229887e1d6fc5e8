"""The models of the folds of cross_fit: their files, their digests, and the check of what is exported."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import FusionRef, ScoresRef
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import sha256_bytes, sha256_file, sha256_json
from streetvision.io.scores import Scores, rows_digest, save_scores
from streetvision.io.tensors import load_state, save_tensors
from streetvision.models.module import Classifier
from streetvision.models.network import state_digest
from streetvision.pipeline.probe_head import set_head
from streetvision.pipeline.scores import open_classifier, rows_of_folds
from streetvision.training.probe import LinearProbe


def save_fold_heads(path: Path, probe: LinearProbe) -> None:
    """Write the heads of the folds: weights (F, P) and biases (F,), float64."""
    assert probe.fold_weights is not None
    assert probe.fold_biases is not None
    content = {"weights": torch.from_numpy(probe.fold_weights), "biases": torch.from_numpy(probe.fold_biases)}
    save_tensors(path, content)


def fold_head_digests(path: Path, classifier: Classifier) -> tuple[str, ...]:
    """Return the digest of the model of each fold: its head on the backbone and the pooling of `classifier`."""
    heads, description = load_state(path), classifier.description
    backbone = [state_digest(classifier.backbone), description.pooling, description.layers]
    return tuple(
        sha256_json([*backbone, sha256_bytes(weight.numpy().tobytes()), float(bias)])
        for weight, bias in zip(heads["weights"], heads["biases"], strict=True)
    )


def fold_classifiers(schema: ArtifactSchema, classifier: Classifier, n_folds: int) -> Iterator[Classifier]:
    """Yield the classifier of each fold; `classifier` is the one that ships."""
    for fold in range(n_folds):
        if schema.fold_heads.is_file():
            of_fold, heads = copy.deepcopy(classifier), load_state(schema.fold_heads)
            set_head(of_fold, heads["weights"][fold].numpy(), float(heads["biases"][fold]))
        else:
            files = schema.in_fold(fold)
            of_fold = open_classifier(files, files.phase1_checkpoint)
        yield of_fold.eval()


def fold_model_digests(
    schema: ArtifactSchema, classifier: Classifier, n_folds: int, *, fusion: FusionRef | None = None
) -> tuple[str, ...]:
    """Return the digest of the model of each fold, as `ScoresRef.fold_models` has it.

    Args:
        schema: Schema of the run.
        classifier: The one that ships.
        n_folds: Number of folds.
        fusion: The fusion of views that ships; a trained one has weights in each fold.
    """
    folds = [schema.in_fold(fold) for fold in range(n_folds)]
    if schema.fold_heads.is_file():
        digests = fold_head_digests(schema.fold_heads, classifier)
    else:
        digests = tuple(_digest(fold.phase1_checkpoint) for fold in folds)
    if fusion is None or fusion.weights_sha256 is None:
        return digests
    return tuple(sha256_json([digest, _digest(fold.cvfm_weights)]) for digest, fold in zip(digests, folds, strict=True))


def save_out_of_fold(
    context: Context,
    logits: Tensor,
    artifacts: tuple[str, ...],
    classifier: Classifier,
    *,
    n_folds: int,
    fusion: FusionRef | None = None,
) -> None:
    """Save the out-of-fold logits (M, 2) of the rows of the first folds as the scores of VAL_CALIB.

    Args:
        context: Context of a phase that opens TRAIN, outside the folds.
        logits: Each row by the model of its fold.
        artifacts: Names of the files of the scores.
        classifier: The one that ships.
        n_folds: Number of these folds.
        fusion: The fusion that ships.
    """
    schema, rows = context.schema, rows_of_folds(context, Split.TRAIN, n_folds)
    scores = Scores(
        logits,
        torch.tensor([row.label for row in rows]),
        split=Split.VAL_CALIB,
        model_sha256=sha256_file(schema.phase1_checkpoint),
        rows_sha256=rows_digest(rows),
        fusion=fusion,
        fold_models=fold_model_digests(schema, classifier, n_folds, fusion=fusion),
    )
    logits_path, labels_path, record = (schema.path(name) for name in artifacts[:3])
    save_scores(scores, logits=logits_path, labels=labels_path, record=record)


def _digest(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def check_fold_models(schema: ArtifactSchema, scores: ScoresRef, classifier: Classifier) -> None:
    """Check that the models of the folds are those that made `scores`, and that their mean is the head that ships.

    Args:
        schema: Schema of the run.
        scores: The scores that the exported policy was fitted on.
        classifier: The classifier that ships.

    Raises:
        ArtifactError: A model of a fold is missing or another one, or the head is not the mean of the folds' heads.
    """
    hint = "run all phases again"
    found = fold_model_digests(schema, classifier, len(scores.fold_models), fusion=scores.fusion)
    if found != scores.fold_models:
        raise ArtifactError("the models of the folds are not those that made the out-of-fold scores", hint)
    if schema.fold_heads.is_file():
        heads, mean = load_state(schema.fold_heads), copy.deepcopy(classifier)
        set_head(mean, heads["weights"].mean(dim=0).numpy(), float(heads["biases"].mean()))
        pairs = zip(mean.head.state_dict().values(), classifier.head.state_dict().values(), strict=True)
        if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs):
            raise ArtifactError("the head that ships is not the mean of the folds' heads", hint)

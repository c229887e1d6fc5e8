"""Scores of VAL_CALIB: how the phases write and open them, with the access check of the phase. Cached features."""

from pathlib import Path

from torch import Tensor

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import FusionRef
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import LoaderConfig
from streetvision.io.atomic import sha256_file
from streetvision.io.scores import Scores, load_scores, rows_digest, save_scores
from streetvision.io.tensors import load_into, load_state
from streetvision.io.validators import validate_json
from streetvision.models.fused import Model
from streetvision.models.module import Classifier, ClassifierDescription, build_classifier
from streetvision.pipeline.artifacts import SCORES
from streetvision.training.features import FeatureCache
from streetvision.training.scoring import score_rows


def make_scores(context: Context, checkpoint: Path, artifacts: tuple[str, ...]) -> None:
    """Score VAL_CALIB with the saved checkpoint of phase 1."""
    save_val_calib(context, open_classifier(context.schema, checkpoint), checkpoint, artifacts=artifacts)


def open_classifier(schema: ArtifactSchema, checkpoint: Path) -> Classifier:
    """The classifier of a saved checkpoint of phase 1, in a run or in a fold."""
    classifier = build_classifier(validate_json(schema.model_config_json, ClassifierDescription))
    load_into(classifier, load_state(checkpoint), source=str(checkpoint))
    return classifier


def cached_features(context: Context, classifier: Classifier, split: Split) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the backbone and labels (N,) of `split`, from the feature cache."""
    loader = context.settings(LoaderConfig)
    cache = FeatureCache(context.schema.feature_cache_dir, classifier, loader=loader, progress=context.progress)
    return cache.features(context.rows(split), root=context.data_root, name=split.value)


def save_val_calib(
    context: Context, model: Model, checkpoint: Path, *, artifacts: tuple[str, ...], fusion: FusionRef | None = None
) -> None:
    """Score VAL_CALIB with `model`, whose weights are in `checkpoint` and `fusion`, and save the scores."""
    scores = score_rows(
        model,
        context.rows(Split.VAL_CALIB),
        root=context.data_root,
        split=Split.VAL_CALIB,
        model_sha256=sha256_file(checkpoint),
        fusion=fusion,
        loader=context.settings(LoaderConfig),
        progress=context.progress,
    )
    logits, labels, record = (context.schema.path(name) for name in artifacts[:3])
    save_scores(scores, logits=logits, labels=labels, record=record)


def open_scores(context: Context, split: Split, artifacts: tuple[str, ...] = SCORES) -> Scores:
    """The scores of `split`, by default those of phase 1.

    Raises:
        LeakageError: The phase may not open the split.
        ArtifactError: The scores are damaged, or of another split.
    """
    context.check_may_open(split)
    logits, labels, record = (context.schema.path(name) for name in artifacts[:3])
    scores = load_scores(logits=logits, labels=labels, record=record)
    if scores.split is not split:
        raise ArtifactError(f"{str(record)!r} has scores of {scores.split}, not of {split}")
    return scores


def rows_of_folds(context: Context, split: Split, n_folds: int) -> tuple[Row, ...]:
    """The rows of the first folds of cross_fit that have out-of-fold scores, for a phase outside the folds."""
    rows = (row for row in context.rows(split) if not row.train_only)
    of_rows = zip(rows, context.fold_of_evaluated_rows, strict=True)
    return tuple(row for row, fold in of_rows if fold < n_folds)


def groups_of(context: Context, scores: Scores) -> list[str | None]:
    """The group of each scored row; raises ArtifactError when splits.json has changed since."""
    rows = context.rows(scores.split)
    if scores.out_of_fold and context.n_folds > 0:
        rows = rows_of_folds(context, scores.split, len(scores.fold_models))
    if rows_digest(rows) != scores.rows_sha256:
        makers = "phase1" if scores.fusion is None else "phase1,phase4c_cvfm"
        raise ArtifactError(
            f"the scores of {makers} are not of the rows that splits.json has for {scores.split.value}",
            f"run the phases again with 'pipeline.phases=[{makers},{context.phase}]'",
        )
    return [row.group for row in rows]

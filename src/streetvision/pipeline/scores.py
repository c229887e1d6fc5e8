"""How a step makes the scores of VAL_CALIB, and opens them: through the gate that its phase was granted."""

from pathlib import Path

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import FusionRef
from streetvision.contracts.split_contracts import Split, check_may_open
from streetvision.data.config import LoaderConfig
from streetvision.io.atomic import sha256_file
from streetvision.io.scores import Scores, load_scores, rows_digest, save_scores
from streetvision.io.tensors import load_into, load_state
from streetvision.io.validators import validate_json
from streetvision.models.fused import Model
from streetvision.models.module import Classifier, ClassifierDescription, build_classifier
from streetvision.pipeline.artifacts import SCORES
from streetvision.training.scoring import score_rows


def make_scores(
    context: Context, description: ClassifierDescription, checkpoint: Path, artifacts: tuple[str, ...]
) -> None:
    """Score VAL_CALIB with the checkpoint as it lies on disk, in a classifier built from its description."""
    chosen = build_classifier(description)
    load_into(chosen, load_state(checkpoint), source=str(checkpoint))
    save_val_calib(context, chosen, checkpoint, artifacts=artifacts)


def open_classifier(context: Context, checkpoint: Path) -> Classifier:
    """The classifier of a checkpoint of phase 1, as it lies on disk."""
    classifier = build_classifier(validate_json(context.schema.model_config_json, ClassifierDescription))
    load_into(classifier, load_state(checkpoint), source=str(checkpoint))
    return classifier


def save_val_calib(
    context: Context, model: Model, checkpoint: Path, *, artifacts: tuple[str, ...], fusion: FusionRef | None = None
) -> None:
    """Score VAL_CALIB with a model that `checkpoint`, and `fusion`, hold."""
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
    """Scores, phase 1's or others, known to be of `split`; raises LeakageError when the phase may not open it."""
    check_may_open(context.phase, split)
    logits, labels, record = (context.schema.path(name) for name in artifacts[:3])
    scores = load_scores(logits=logits, labels=labels, record=record)
    if scores.split is not split:
        raise ArtifactError(f"{str(record)!r} holds scores of {scores.split}, not of {split}")
    return scores


def groups_of(context: Context, scores: Scores) -> list[str | None]:
    """The group of each row scored; raises ArtifactError when splits.json has other rows by now."""
    rows = context.rows(scores.split)
    if rows_digest(rows) != scores.rows_sha256:
        makers = "phase1" if scores.fusion is None else "phase1,phase4c_cvfm"
        raise ArtifactError(
            f"the scores of {makers} belong to other rows than splits.json has for {scores.split.value}",
            f"run them again: pipeline.phases=[{makers},{context.phase}]",
        )
    return [row.group for row in rows]

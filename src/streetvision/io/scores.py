"""Scores: logits and labels of a split, with the digest of the model that produced them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest, FusionRef, ScoresRef
from streetvision.contracts.split_contracts import Row, Split
from streetvision.io.atomic import sha256_bytes, sha256_json, write_json_atomic
from streetvision.io.tensors import save_tensors, validate_labels, validate_logits
from streetvision.io.validators import validate_json


class ScoresRecord(Artifact):
    """Content of val_calib_scores.json: links the logits and labels to a model and to rows."""

    reference: ScoresRef
    rows_sha256: Digest
    """Digest of the scored rows, in order."""


@dataclass(frozen=True)
class Scores:
    """The outputs of one model for one split, N rows."""

    logits: Tensor
    """(N, 2) float32."""
    labels: Tensor
    """(N,) int64."""
    split: Split
    model_sha256: str
    """Digest of the checkpoint file."""
    rows_sha256: str
    """Digest of the scored rows, in order."""
    fusion: FusionRef | None = None
    """The fusion of views; None: each image is one view."""
    fold_models: tuple[str, ...] = ()
    """Under cross_fit: digest of the model of each fold, which scored its rows; `model_sha256` is the model that ships.
    Empty: `model_sha256` scored all rows."""

    @property
    def out_of_fold(self) -> bool:
        """Whether each row was scored by a model that did not see its group."""
        return bool(self.fold_models)

    @property
    def reference(self) -> ScoresRef:
        """The reference stored in policies that are fitted on these scores."""
        content = [
            self.model_sha256,
            None if self.fusion is None else self.fusion.model_dump(),
            self.rows_sha256,
            sha256_bytes(_bytes(self.logits)),
            sha256_bytes(_bytes(self.labels)),
            list(self.fold_models),
        ]
        return ScoresRef(
            sha256=sha256_json(content),
            model_sha256=self.model_sha256,
            fold_models=self.fold_models,
            fusion=self.fusion,
            split=self.split.value,
            n=len(self.labels),
            positives=int(self.labels.sum()),
        )


def rows_digest(rows: tuple[Row, ...]) -> str:
    """Return the digest of the contents and labels of rows, in order."""
    return sha256_json([[row.sha256, row.label] for row in rows])


def save_scores(scores: Scores, *, logits: Path, labels: Path, record: Path) -> None:
    """Write the two tensors, then the record."""
    save_tensors(logits, scores.logits)
    save_tensors(labels, scores.labels)
    record_content = ScoresRecord(reference=scores.reference, rows_sha256=scores.rows_sha256)
    write_json_atomic(record, record_content.model_dump(mode="json"))


def load_scores(*, logits: Path, labels: Path, record: Path) -> Scores:
    """Return the saved scores.

    Raises:
        ArtifactError: a file is missing or invalid, or the tensors do not match the record.
    """
    saved = validate_json(record, ScoresRecord)
    logits_tensor = validate_logits(logits)
    try:
        split = Split(saved.reference.split)
    except ValueError as error:
        raise ArtifactError(f"{str(record)!r} has the unknown split {saved.reference.split!r}") from error
    scores = Scores(
        logits=logits_tensor,
        labels=validate_labels(labels, n=len(logits_tensor)),
        split=split,
        model_sha256=saved.reference.model_sha256,
        rows_sha256=saved.rows_sha256,
        fusion=saved.reference.fusion,
        fold_models=saved.reference.fold_models,
    )
    if scores.reference != saved.reference:
        raise ArtifactError(
            f"{str(logits)!r} and {str(labels)!r} do not match the digests in {str(record)!r}",
            "run phase1 again: 'pipeline.phases=[phase1]'",
        )
    return scores


def _bytes(tensor: Tensor) -> bytes:
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = torch.Tensor.numpy(tensor.contiguous())
    return array.tobytes()

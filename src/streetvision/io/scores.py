"""Scores: the logits of a split, with the digest of the model that made them."""

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
    """val_calib_scores.json: what ties the two tensors beside it to a model and to rows."""

    reference: ScoresRef
    rows_sha256: Digest
    """Digest of the rows scored, in order."""


@dataclass(frozen=True)
class Scores:
    """What one model said of one split."""

    logits: Tensor
    """(N, 2) float32."""
    labels: Tensor
    """(N,) int64."""
    split: Split
    model_sha256: str
    """Digest of the checkpoint file."""
    rows_sha256: str
    """Digest of the rows scored, in order."""
    fusion: FusionRef | None = None
    """How views were fused; None: each image is one view."""

    @property
    def reference(self) -> ScoresRef:
        """What a policy that is fitted on these scores carries."""
        content = [
            self.model_sha256,
            None if self.fusion is None else self.fusion.model_dump(),
            self.rows_sha256,
            sha256_bytes(_bytes(self.logits)),
            sha256_bytes(_bytes(self.labels)),
        ]
        return ScoresRef(
            sha256=sha256_json(content),
            model_sha256=self.model_sha256,
            fusion=self.fusion,
            split=self.split.value,
            n=len(self.labels),
            positives=int(self.labels.sum()),
        )


def rows_digest(rows: tuple[Row, ...]) -> str:
    """Digest of rows in order: their content and labels."""
    return sha256_json([[row.sha256, row.label] for row in rows])


def save_scores(scores: Scores, *, logits: Path, labels: Path, record: Path) -> None:
    """Write the two tensors, then the record that ties them together."""
    save_tensors(logits, scores.logits)
    save_tensors(labels, scores.labels)
    content = ScoresRecord(reference=scores.reference, rows_sha256=scores.rows_sha256)
    write_json_atomic(record, content.model_dump(mode="json"))


def load_scores(*, logits: Path, labels: Path, record: Path) -> Scores:
    """Read scores back; raises ArtifactError when tensors and record do not belong together."""
    found = validate_json(record, ScoresRecord)
    values = validate_logits(logits)
    try:
        split = Split(found.reference.split)
    except ValueError as error:
        raise ArtifactError(f"{str(record)!r} is of {found.reference.split!r}, and there is no such split") from error
    scores = Scores(
        logits=values,
        labels=validate_labels(labels, n=len(values)),
        split=split,
        model_sha256=found.reference.model_sha256,
        rows_sha256=found.rows_sha256,
        fusion=found.reference.fusion,
    )
    if scores.reference != found.reference:
        raise ArtifactError(
            f"{str(logits)!r} and {str(labels)!r} are not the scores that {str(record)!r} describes",
            "run phase1 again: pipeline.phases=[phase1]",
        )
    return scores


def _bytes(tensor: Tensor) -> bytes:
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = torch.Tensor.numpy(tensor.contiguous())
    return array.tobytes()

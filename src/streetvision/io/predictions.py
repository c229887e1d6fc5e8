"""predictions.csv: the prediction of each policy for each image of an evaluation."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import read_bytes, write_text_atomic

COLUMNS = ("policy", "inference", "shipped", "path", "label", "group", "probability", "decision")
EVALUATE_AGAIN = "run the evaluation again"


@dataclass(frozen=True)
class PolicyPredictions:
    """The predictions of one policy for the N rows of a test set."""

    policy: str
    """argmax, threshold or scrc."""
    inference: str
    """single_view, or the fusion of views."""
    shipped: bool
    """Whether this is the policy of the bundle."""
    paths: list[str]
    labels: NDArray[np.int64]
    """(N,) 0 or 1."""
    groups: list[str | None]
    probabilities: NDArray[np.float64]
    """(N,) probability of class 1."""
    decisions: NDArray[np.bool_]
    """(N,) whether class 1 is predicted."""


def write_predictions(path: Path, predictions: Iterable[PolicyPredictions]) -> None:
    """Write one line per policy and image, with probabilities in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for policy in predictions:
        key = (policy.policy, policy.inference, int(policy.shipped))
        columns = (
            policy.paths,
            policy.labels.tolist(),
            [group or "" for group in policy.groups],
            map(repr, policy.probabilities.tolist()),
            policy.decisions.astype(int).tolist(),
        )
        writer.writerows([*key, *row] for row in zip(*columns, strict=True))
    write_text_atomic(path, text.getvalue())


def read_predictions(path: Path) -> list[PolicyPredictions]:
    """Return the predictions by policy, in the order of the file.

    Raises:
        ArtifactError: the file is missing, has other columns, or has an invalid value.
    """
    lines = csv.DictReader(io.StringIO(read_bytes(path).decode(errors="replace"), newline=""))
    rows_by_policy: dict[tuple[str, str, bool], list[tuple[str, int, str | None, float, int]]] = {}
    try:
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise ArtifactError(f"{str(path)!r} must have the columns {', '.join(COLUMNS)}", EVALUATE_AGAIN)
        for line in lines:
            key = (line["policy"], line["inference"], line["shipped"] == "1")
            row = (
                line["path"],
                int(line["label"]),
                line["group"] or None,
                float(line["probability"]),
                int(line["decision"]),
            )
            rows_by_policy.setdefault(key, []).append(row)
    except (TypeError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{str(path)!r}, line {lines.line_num}: {error}", EVALUATE_AGAIN) from error
    predictions = []
    for key, rows in rows_by_policy.items():
        paths, labels, groups, probabilities, decisions = zip(*rows, strict=True)
        predictions.append(
            PolicyPredictions(
                *key,
                list(paths),
                np.array(labels, dtype=np.int64),
                list(groups),
                np.array(probabilities, dtype=np.float64),
                np.array(decisions, dtype=np.bool_),
            )
        )
    return predictions

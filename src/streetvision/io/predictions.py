"""predictions.csv: what every policy of an evaluation answered to every image, so that figures can be made again."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import read_bytes, write_text_atomic

COLUMNS = ("policy", "inference", "shipped", "path", "label", "group", "probability", "decision")


@dataclass(frozen=True)
class PolicyPredictions:
    """One policy on every row of a test set, N rows."""

    policy: str
    """argmax, threshold or scrc."""
    inference: str
    """How many looks at each image, and how they are fused."""
    shipped: bool
    """Whether it is the one in the bundle."""
    paths: list[str]
    labels: NDArray[np.int64]
    """(N,) 0 or 1."""
    groups: list[str | None]
    probabilities: NDArray[np.float64]
    """(N,) of class 1."""
    decisions: NDArray[np.bool_]
    """(N,)"""


def write_predictions(path: Path, answers: Iterable[PolicyPredictions]) -> None:
    """Write one line for each policy and image; probabilities in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for of in answers:
        columns = (
            of.paths,
            of.labels.tolist(),
            of.groups,
            of.probabilities.tolist(),
            of.decisions.astype(int).tolist(),
        )
        for name, label, group, probability, decision in zip(*columns, strict=True):
            writer.writerow(
                [of.policy, of.inference, int(of.shipped), name, label, group or "", repr(probability), decision]
            )
    write_text_atomic(path, text.getvalue())


def read_predictions(path: Path) -> list[PolicyPredictions]:
    """The answers by policy, in the order of the file; raises ArtifactError when it is missing or of another shape."""
    lines = csv.DictReader(io.StringIO(read_bytes(path).decode(errors="replace"), newline=""))
    if tuple(lines.fieldnames or ()) != COLUMNS:
        raise ArtifactError(f"{str(path)!r} should have the columns {', '.join(COLUMNS)}", "run the evaluation again")
    found: dict[tuple[str, str, bool], _Lines] = {}
    try:
        for line in lines:
            key = (line["policy"], line["inference"], line["shipped"] == "1")
            found.setdefault(key, _Lines()).add(line)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r}, line {lines.line_num}: {error}", "run the evaluation again") from error
    return [
        PolicyPredictions(
            *key,
            of.paths,
            np.array(of.labels, dtype=np.int64),
            of.groups,
            np.array(of.probabilities, dtype=np.float64),
            np.array(of.decisions, dtype=np.bool_),
        )
        for key, of in found.items()
    ]


@dataclass
class _Lines:
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    decisions: list[int] = field(default_factory=list)

    def add(self, line: dict[str, str]) -> None:
        self.paths.append(line["path"])
        self.labels.append(int(line["label"]))
        self.groups.append(line["group"] or None)
        self.probabilities.append(float(line["probability"]))
        self.decisions.append(int(line["decision"]))

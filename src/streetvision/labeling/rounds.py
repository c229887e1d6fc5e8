"""How the model improved from one round of labels to the next: a small file next to labels.parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact
from streetvision.io.atomic import write_json_atomic
from streetvision.io.validators import validate_json

ROUNDS = "rounds.json"
MAX_ROUNDS = 1000


class Round(BaseModel):
    """One training with the labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: AwareDatetime
    run: str = Field(max_length=4096)
    """Folder of the run."""
    labels: int = Field(ge=0)
    """Labels of people that were used."""
    images: int = Field(ge=1)
    """All images of the run."""
    evaluated: int = Field(ge=1)
    """Images of VAL_CALIB."""
    mcc: float = Field(ge=-1, le=1)
    """On VAL_CALIB, at the threshold of phase 2; not on VAL_TEST, which a round must not use up."""


class Rounds(Artifact):
    """rounds.json."""

    schema_version: Literal[1] = 1
    rounds: tuple[Round, ...] = Field(default=(), max_length=MAX_ROUNDS)


def read_rounds(folder: Path) -> tuple[Round, ...]:
    """Return the rounds in a folder of labels, the oldest first; none if there is no file."""
    path = folder / ROUNDS
    return validate_json(path, Rounds).rounds if path.exists() else ()


def add_round(folder: Path, new: Round) -> tuple[Round, ...]:
    """Add a round, and return all of them. Training again without new labels replaces the last round.

    Raises:
        ArtifactError: The file cannot be read or written.
    """
    earlier = [known for known in read_rounds(folder) if (known.run, known.labels) != (new.run, new.labels)]
    rounds = (*earlier, new)[-MAX_ROUNDS:]
    write_json_atomic(folder / ROUNDS, Rounds(rounds=rounds).model_dump(mode="json"))
    return rounds


def round_lines(rounds: Sequence[Round]) -> list[str]:
    """Return what moved since the last round, and the learning curve, as lines for a terminal.

    Raises:
        ArtifactError: There is no round.
    """
    if not rounds:
        raise ArtifactError("there is no round of labels yet")
    last = rounds[-1]
    lines = [f"MCC {last.mcc:.3f} on {last.evaluated} images of VAL_CALIB with {last.labels} labels"]
    same = [known for known in rounds[:-1] if known.run == last.run]
    if same:
        before = same[-1]
        lines[0] = (
            f"MCC {before.mcc:.3f} -> {last.mcc:.3f} ({last.mcc - before.mcc:+.3f}) on {last.evaluated} images of "
            f"VAL_CALIB with {last.labels} labels ({last.labels - before.labels:+d})"
        )
        lines.append("curve: " + ", ".join(f"{known.labels} labels {known.mcc:.3f}" for known in [*same, last]))
    return lines

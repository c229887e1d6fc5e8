"""Images that nobody labelled: found in folders, read once, and kept apart from whatever is judged."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import DecodeLimits, GroupingConfig
from streetvision.data.connected_components import components
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.perceptual_hash import join_hashes
from streetvision.data.scan import Scan, scan_images
from streetvision.data.sources.data_root import NO_LABEL, list_unlabeled


class UnlabeledRow(BaseModel):
    """A row of unlabeled.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, Field(min_length=1)]
    """Absolute."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    group: str | None = None


class UnlabeledImages(BaseModel):
    """unlabeled.json: what phase 4a may look at besides TRAIN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    rows: tuple[UnlabeledRow, ...]
    left_out: dict[str, str]
    """Path -> why it was not taken."""

    def as_rows(self) -> tuple[Row, ...]:
        """The same as rows without a label."""
        return tuple(Row(label=NO_LABEL, **row.model_dump()) for row in self.rows)


def scan_unlabeled(sources: Sequence[Path], *, limits: DecodeLimits, progress: Progress) -> Scan:
    """Read every image that `list_unlabeled` finds, of whatever class."""
    return scan_images(list_unlabeled(sources), class_names=("", ""), limits=limits, looking=True, progress=progress)


def keep_apart(unlabeled: Scan, labelled: Scan, roles: Sequence[Split], config: GroupingConfig) -> UnlabeledImages:
    """The images that show nothing of VAL_SELECT, VAL_CALIB or VAL_TEST.

    No copy, no near-duplicate and none of the group of a row there, over as many steps as it takes, as groups are
    joined where images are dealt; `roles` are those of the labelled rows.
    """
    judged = [role is not Split.TRAIN for role in roles]
    assert unlabeled.looks is not None
    assert labelled.looks is not None
    together = join_hashes(unlabeled.looks, labelled.looks.where(judged))
    found = find_near_duplicates(together, radius=config.radius, correlation=config.correlation)
    own = unlabeled.index.rows
    every = [*own, *compress(labelled.index.rows, judged)]
    links = [[row.sha256 for row in every], [row.group for row in every], found.clusters.tolist()]
    numbers = components(links, len(every))
    touched = set(numbers[len(own) :])
    left_out = {file.path: file.reason for file in (*unlabeled.bad, *unlabeled.left_out)}
    rows: dict[str, UnlabeledRow] = {}
    for row, number in zip(own, numbers, strict=False):
        if number in touched:
            left_out[row.path] = "belongs with an image that is judged"
        else:
            record = {name: getattr(row, name) for name in UnlabeledRow.model_fields}
            rows.setdefault(row.sha256, UnlabeledRow.model_validate(record))  # each content once
    return UnlabeledImages(rows=tuple(rows.values()), left_out=left_out)

"""Images that nobody labelled: found in folders, read once, and kept apart from whatever is judged."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import DecodeLimits, GroupingConfig
from streetvision.data.index import NO_LABEL, list_unlabeled
from streetvision.data.listing import Listing
from streetvision.data.near_duplicates import find_near_duplicates
from streetvision.data.perceptual import join_looks
from streetvision.data.scan import Scan, scan_images


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
    listing = Listing(Path("/"), list_unlabeled(sources), ())
    return scan_images(listing, class_names=("", ""), limits=limits, looking=True, progress=progress)


def keep_apart(unlabeled: Scan, labelled: Scan, roles: Sequence[Split], config: GroupingConfig) -> UnlabeledImages:
    """The images that show nothing of VAL_SELECT, VAL_CALIB or VAL_TEST.

    No copy and no near-duplicate of a labelled row there, and none of the same group; `roles` are those of the rows.
    """
    judged = [role is not Split.TRAIN for role in roles]
    contents = {row.sha256 for row in compress(labelled.index.rows, judged)}
    groups = {row.group for row in compress(labelled.index.rows, judged)} - {None}
    assert unlabeled.looks is not None
    assert labelled.looks is not None
    own, others = unlabeled.index.rows, labelled.looks.where(judged)
    together = join_looks(unlabeled.looks, others)
    pairs = find_near_duplicates(together, radius=config.radius, correlation=config.correlation).pairs
    crossing = pairs[(pairs[:, 0] < len(own)) & (pairs[:, 1] >= len(own))]  # those judged stand behind the others
    near = set(np.unique(crossing[:, 0]).tolist())
    left_out = {file.path: file.reason for file in unlabeled.bad}
    rows: dict[str, UnlabeledRow] = {}
    for number, row in enumerate(own):
        if row.sha256 in contents or row.group in groups or number in near:
            left_out[row.path] = "shows what an image that is judged shows"
        else:
            record = {name: getattr(row, name) for name in UnlabeledRow.model_fields}
            rows.setdefault(row.sha256, UnlabeledRow.model_validate(record))  # each content once
    return UnlabeledImages(rows=tuple(rows.values()), left_out=left_out)

"""Images that nobody labelled: found in folders, read once, and kept apart from whatever is judged."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Partition, Row, Split
from streetvision.data.decode import DecodeLimits
from streetvision.data.grouping import GroupingConfig
from streetvision.data.index import files_under
from streetvision.data.listing import Listed, Listing
from streetvision.data.near_duplicates import find_near_duplicates
from streetvision.data.perceptual import Looks, join_looks
from streetvision.data.scan import Scan, scan_images

NO_LABEL = -1


class UnlabeledRow(BaseModel):
    """A row of unlabeled.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, Field(min_length=1)]
    """Absolute."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    brightness: Annotated[float, Field(ge=0, le=1)]


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


def scan_unlabeled(folders: Sequence[Path], *, limits: DecodeLimits, progress: Progress) -> Scan:
    """Read every image below the folders, of whatever class; raises DataError for a folder that has none."""
    paths: list[str] = []
    for folder in folders:
        root = folder.expanduser().absolute()
        found = files_under(root, root)[0] if root.is_dir() else []
        if not found:
            raise DataError(f"data.unlabeled {str(folder)!r} {'holds no images' if root.is_dir() else 'is no folder'}")
        paths += [str(root / path) for path in found]
    listing = Listing(Path("/"), tuple(Listed(path, NO_LABEL) for path in dict.fromkeys(paths)), ())
    return scan_images(listing, class_names=("", ""), limits=limits, looking=True, progress=progress)


def keep_apart(unlabeled: Scan, partition: Partition, looks: Looks, config: GroupingConfig) -> UnlabeledImages:
    """The images that show nothing of VAL_SELECT, VAL_CALIB or VAL_TEST: no copy and no near-duplicate of a row there.

    `looks` are those of the partition's rows, in their order.
    """
    judged = [role is not Split.TRAIN for role in partition.roles]
    contents = {row.sha256 for row in compress(partition.index.rows, judged)}
    assert unlabeled.looks is not None
    own, others = unlabeled.index.rows, looks.where(judged)
    together = join_looks(unlabeled.looks, others)
    pairs = find_near_duplicates(together, radius=config.radius, correlation=config.correlation).pairs
    crossing = pairs[(pairs[:, 0] < len(own)) & (pairs[:, 1] >= len(own))]  # those judged stand behind the others
    near = set(np.unique(crossing[:, 0]).tolist())
    left_out = {file.path: file.reason for file in unlabeled.bad}
    rows: dict[str, UnlabeledRow] = {}
    for number, row in enumerate(own):
        if row.sha256 in contents or number in near:
            left_out[row.path] = "shows what an image that is judged shows"
        else:
            record = {name: getattr(row, name) for name in UnlabeledRow.model_fields}
            rows.setdefault(row.sha256, UnlabeledRow.model_validate(record))  # each content once
    return UnlabeledImages(rows=tuple(rows.values()), left_out=left_out)

"""Unlabeled images for phase 4a: read once, and kept free of everything that is linked to an evaluation split."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import DecodeLimits, GroupingConfig
from streetvision.data.grouping.connected_components import components
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.grouping.perceptual_hash import join_hashes
from streetvision.data.scan import Scan, scan_images
from streetvision.data.sources.discovery import UNLABELED, list_unlabeled


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
    """unlabeled.json: the images that phase 4a uses in addition to TRAIN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    rows: tuple[UnlabeledRow, ...]
    excluded: dict[str, str]
    """Path of each image or file that is not used -> reason."""

    def as_rows(self) -> tuple[Row, ...]:
        """Return the images as rows without a label."""
        return tuple(Row(label=UNLABELED, **row.model_dump()) for row in self.rows)


def scan_unlabeled(
    sources: Sequence[Path],
    *,
    limits: DecodeLimits,
    group_pattern: str | None = None,
    damaged_images: Literal["leave_out", "use"] = "leave_out",
    progress: Progress,
) -> Scan:
    """Read every image that `list_unlabeled` finds."""
    return scan_images(
        list_unlabeled(sources, group_pattern=group_pattern),
        class_names=("", ""),
        limits=limits,
        damaged_images=damaged_images,
        with_hashes=True,
        progress=progress,
    )


def select_unlabeled(unlabeled: Scan, labeled: Scan, roles: Sequence[Split], config: GroupingConfig) -> UnlabeledImages:
    """Select the unlabeled images that are not linked to an image of VAL_SELECT, VAL_CALIB or VAL_TEST.

    Links are equal bytes, near-duplicates and groups, over any number of steps, as in the grouping of labeled images.
    Of several images with the same bytes, one is kept.

    Args:
        unlabeled: Scan of the unlabeled images, with hashes.
        labeled: Scan of the labeled images, with hashes.
        roles: Split of each row of `labeled`.
        config: Search parameters of near-duplicates.
    """
    assert unlabeled.hashes is not None
    assert labeled.hashes is not None
    held_out = [role is not Split.TRAIN for role in roles]
    hashes = join_hashes(unlabeled.hashes, labeled.hashes.where(held_out))
    near_duplicates = find_near_duplicates(hashes, radius=config.radius, correlation=config.correlation)
    candidates = unlabeled.index.rows
    rows = [*candidates, *compress(labeled.index.rows, held_out)]
    # A group that equal bytes joined with another has lost its name in the rows.
    members = [*((row.sha256, row.group) for row in rows), *unlabeled.joined, *labeled.joined]
    digests, groups = zip(*members, strict=True)
    component_of = components([digests, groups, near_duplicates.clusters.tolist()], len(members))
    held_out_components = set(component_of[len(candidates) : len(rows)])
    excluded = {file.path: file.reason for file in (*unlabeled.invalid, *unlabeled.skipped)}
    selected: dict[str, UnlabeledRow] = {}
    for row, component in zip(candidates, component_of, strict=False):
        if component in held_out_components:
            excluded[row.path] = "is linked to an image of an evaluation split"
        elif row.sha256 in selected:
            excluded[row.path] = f"has the content of {selected[row.sha256].path}"
        else:
            record = {name: getattr(row, name) for name in UnlabeledRow.model_fields}
            selected[row.sha256] = UnlabeledRow.model_validate(record)
    return UnlabeledImages(rows=tuple(selected.values()), excluded=excluded)

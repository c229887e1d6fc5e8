"""Which rows belong together, so that they are dealt to one split: everything that links two rows, joined."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.split_contracts import Index, Lookalikes, Row
from streetvision.data.linking import Keys, join_groups
from streetvision.data.near_duplicates import CORRELATION, RADIUS, NearDuplicates, find_near_duplicates
from streetvision.data.places import place_keys
from streetvision.data.scan import Scan


class GroupingConfig(BaseModel):
    """What makes rows belong together, beside equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: tuple[Literal["column", "near_duplicates", "place"], ...] = ("column", "near_duplicates")
    """column: the group that the index names; near_duplicates: nearly the same picture; place: GPS, and time if asked.
    Several are joined: rows that any of them links stay together."""
    radius: int = Field(default=RADIUS, ge=0, le=20)
    """near_duplicates: bits of 64 by which perceptual hashes differ at most."""
    correlation: float = Field(default=CORRELATION, gt=0, le=1)
    """near_duplicates: least correlation of the thumbnails, 0 to 1; at least 0.97 is needed under 64 pixels."""
    metres: float = Field(default=30.0, gt=0)
    """place: photographs at most this far apart are neighbours."""
    hours: float | None = Field(default=None, gt=0)
    """place: neighbours were also taken at most this many hours apart; None: at any time."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        readers = {"radius": "near_duplicates", "correlation": "near_duplicates", "metres": "place", "hours": "place"}
        for field, reader in readers.items():
            if reader not in self.by and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is read only where `by` names {reader}")
        return self


def group_rows(scan: Scan, config: GroupingConfig) -> tuple[Index, Lookalikes | None]:
    """The index of `scan` with the groups that `config` asks for, and the near-duplicates if it asks for these."""
    rows = scan.index.rows
    keys: list[Keys] = []
    lookalikes = None
    if "near_duplicates" in config.by:
        assert scan.looks is not None, "near-duplicates are found among what was looked at"
        found = find_near_duplicates(scan.looks, radius=config.radius, correlation=config.correlation)
        keys.append(found.clusters.tolist())
        lookalikes = _tell(found, rows, config)
    if "place" in config.by:
        keys.append(place_keys([row.columns for row in rows], metres=config.metres, hours=config.hours))
    if "column" not in config.by:
        rows = tuple(replace(row, group=None) for row in rows)
    return replace(scan.index, rows=join_groups(rows, *keys)), lookalikes


def _tell(found: NearDuplicates, rows: Sequence[Row], config: GroupingConfig) -> Lookalikes:
    members: dict[int, list[str]] = defaultdict(list)
    for row, cluster in zip(rows, found.clusters.tolist(), strict=True):
        members[cluster].append(row.path)
    clusters = tuple(tuple(paths) for paths in members.values() if len(paths) > 1)
    return Lookalikes(config.radius, config.correlation, len(found.pairs), clusters)

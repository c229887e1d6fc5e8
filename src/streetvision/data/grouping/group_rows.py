"""Which rows belong together, so that they are dealt to one split: everything that links two rows, joined."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Row
from streetvision.data.config import GroupingConfig
from streetvision.data.connected_components import Keys, join_groups
from streetvision.data.grouping.geo import geo_keys
from streetvision.data.grouping.near_duplicates import NearDuplicates, find_near_duplicates
from streetvision.data.scan import Scan


def group_rows(scan: Scan, config: GroupingConfig) -> tuple[Index, NearDuplicateClusters | None]:
    """The index of `scan` with the groups that `config` asks for, and the near-duplicates if it asks for these."""
    rows = scan.index.rows
    keys: list[Keys] = []
    near_duplicates = None
    if "near_duplicates" in config.by:
        assert scan.looks is not None, "near-duplicates are found among what was looked at"
        found = find_near_duplicates(scan.looks, radius=config.radius, correlation=config.correlation)
        keys.append(found.clusters.tolist())
        near_duplicates = _tell(found, rows, config)
    if "place" in config.by:
        keys.append(geo_keys([row.columns for row in rows], metres=config.metres, hours=config.hours))
    if "column" not in config.by:
        rows = tuple(replace(row, group=None) for row in rows)
    return replace(scan.index, rows=join_groups(rows, *keys)), near_duplicates


def _tell(found: NearDuplicates, rows: Sequence[Row], config: GroupingConfig) -> NearDuplicateClusters:
    members: dict[int, list[str]] = defaultdict(list)
    for row, cluster in zip(rows, found.clusters.tolist(), strict=True):
        members[cluster].append(row.path)
    clusters = tuple(tuple(paths) for paths in members.values() if len(paths) > 1)
    return NearDuplicateClusters(config.radius, config.correlation, len(found.pairs), clusters)

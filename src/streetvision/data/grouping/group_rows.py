"""Group the rows of an index by everything that links two rows. A group is never divided between splits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Row
from streetvision.data.config import GroupingConfig
from streetvision.data.grouping.connected_components import Keys, join_groups
from streetvision.data.grouping.geo import geo_keys
from streetvision.data.grouping.hamming import Positions
from streetvision.data.grouping.near_duplicates import find_near_duplicates
from streetvision.data.grouping.perceptual_hash import PerceptualHashes


def group_rows(
    index: Index, hashes: PerceptualHashes | None, config: GroupingConfig, *, progress: Progress | None = None
) -> tuple[Index, NearDuplicateClusters | None]:
    """Return the index with the configured groups, and the near-duplicates if they are searched.

    Args:
        index: N rows with the groups of their source.
        hashes: perceptual hashes of the N rows; they are needed if `config.by` has near_duplicates.
        config: what links two rows.
        progress: shows the advance of the comparison of near-duplicates.
    """
    rows = index.rows
    keys: list[Keys] = []
    clusters = None
    if "near_duplicates" in config.by:
        assert hashes is not None, "near-duplicates need a scan with hashes"
        found = find_near_duplicates(hashes, radius=config.radius, correlation=config.correlation, progress=progress)
        keys.append(found.clusters.tolist())
        clusters = NearDuplicateClusters(
            config.radius,
            config.correlation,
            len(found.pairs),
            clusters=_paths_by_cluster(rows, found.clusters),
            copies=_paths_by_cluster(rows, found.copy_clusters),
        )
    if "place" in config.by:
        keys.append(geo_keys(rows, metres=config.metres, hours=config.hours))
    if "column" not in config.by:
        rows = tuple(replace(row, group=None) for row in rows)
    return replace(index, rows=join_groups(rows, *keys)), clusters


def copy_conflicts(index: Index, near_duplicates: NearDuplicateClusters | None) -> dict[str, str]:
    """Return path -> reason of the rows that are copies of one photograph with both labels: one of them is wrong."""
    label_of = {row.path: row.label for row in index.rows}
    reasons = {}
    for cluster in near_duplicates.copies if near_duplicates else ():
        first = {label_of[path]: path for path in reversed(cluster)}
        if len(first) == 2:
            for path in cluster:
                reasons[path] = f"is a copy of {first[1 - label_of[path]]}, which has the other label"
    return reasons


def _paths_by_cluster(rows: Sequence[Row], cluster_of: Positions) -> tuple[tuple[str, ...], ...]:
    """The paths of each cluster with two or more rows."""
    members: dict[int, list[str]] = defaultdict(list)
    for row, cluster in zip(rows, cluster_of.tolist(), strict=True):
        members[cluster].append(row.path)
    return tuple(tuple(paths) for paths in members.values() if len(paths) > 1)

"""Join linked rows into groups: connected components of the graph of links."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from streetvision.contracts.split_contracts import Row

Keys = Sequence[Hashable | None]
"""One key per row. Rows with equal keys are linked; None links to nothing."""


def join_groups(rows: Sequence[Row], *further: Keys) -> tuple[Row, ...]:
    """Return the rows with groups that contain all links: equal bytes, the same group, or equal `further` keys.

    A joined group has the name that sorts first. Without a name it is named after the digest that sorts first. A row
    without links keeps its group.
    """
    digests, groups = [row.sha256 for row in rows], [row.group for row in rows]
    component_of = components([digests, groups, *further], len(rows))
    members: dict[int, list[Row]] = defaultdict(list)
    for row, component in zip(rows, component_of, strict=True):
        members[component].append(row)
    names = {component: _group_name(linked) for component, linked in members.items()}
    return tuple(replace(row, group=names[component]) for row, component in zip(rows, component_of, strict=True))


def components(links: Sequence[Keys], n: int) -> list[int]:
    """Return the component (N,) of each of `n` rows; rows that share a key in any of `links` are connected."""
    # Keys are nodes too, so that rows with the same key need one edge each, not one per pair. A key of one list is
    # another node than the same key of another list.
    nodes: dict[tuple[int, Hashable], int] = {}
    edges: list[tuple[int, int]] = []
    for number, keys in enumerate(links):
        for position, key in enumerate(keys):
            if key is not None:
                edges.append((position, n + nodes.setdefault((number, key), len(nodes))))
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    component_of: list[int] = components_of_pairs(pairs, n + len(nodes))[:n].tolist()
    return component_of


def components_of_pairs(pairs: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Return the component (N,) of each of `n` nodes; `pairs` (P, 2) are the edges."""
    graph = coo_array((np.ones(len(pairs), dtype=np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _group_name(members: Sequence[Row]) -> str | None:
    if names := sorted({row.group for row in members if row.group is not None}):
        return names[0]
    if len(members) == 1:
        return None
    digests = {row.sha256 for row in members}
    return f"{'copies of' if len(digests) == 1 else 'like'} {min(digests)[:12]}"

"""Rows that are linked, by content, by group or otherwise, joined into groups."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from streetvision.contracts.split_contracts import Row

Keys = Sequence[Hashable | None]
"""One a row: rows with equal keys belong together; None links to nothing."""


def join_groups(rows: Sequence[Row], *further: Keys) -> tuple[Row, ...]:
    """The rows with their groups, where rows of equal content, of one group, or of equal `further` keys share one.

    Groups that are linked become one, under the name that sorts first; rows that none of them names are called after
    the content that sorts first. A row that is linked to no other keeps the group it had.
    """
    contents, given = [row.sha256 for row in rows], [row.group for row in rows]
    members_of: dict[int, list[Row]] = defaultdict(list)
    numbers = components([contents, given, *further], len(rows))
    for row, number in zip(rows, numbers, strict=True):
        members_of[number].append(row)
    names = {number: _name(members) for number, members in members_of.items()}
    return tuple(replace(row, group=names[number]) for row, number in zip(rows, numbers, strict=True))


def components(links: Sequence[Keys], n: int) -> list[int]:
    """The number of the component of each of the `n` rows, in the graph of rows and the keys they have."""
    nodes: dict[tuple[int, Hashable], int] = {}
    edges: list[tuple[int, int]] = []
    for kind, keys in enumerate(links):
        for position, key in enumerate(keys):
            if key is not None:
                edges.append((position, n + nodes.setdefault((kind, key), len(nodes))))
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    size = n + len(nodes)
    graph = coo_array((np.ones(len(ends), dtype=np.bool_), (ends[:, 0], ends[:, 1])), shape=(size, size))
    numbers: list[int] = connected_components(graph, directed=False)[1][:n].tolist()
    return numbers


def _name(members: Sequence[Row]) -> str | None:
    if given := sorted({row.group for row in members if row.group is not None}):
        return given[0]
    if len(members) == 1:
        return None
    contents = {row.sha256 for row in members}
    return f"{'copies of' if len(contents) == 1 else 'like'} {min(contents)[:12]}"

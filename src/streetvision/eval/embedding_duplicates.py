"""Which images an embedding holds to be nearly the same, beside the clusters that hashes have found.

Legend: N images, P pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
Clusters = NDArray[np.int64]
BLOCK = 1024
"""Rows that are compared with all others at a time."""


@dataclass(frozen=True)
class EmbeddingDuplicates:
    """Cosines of embeddings between images of one cluster, and between those of different ones."""

    within: float
    """Median cosine of an image to the least alike image of its own cluster; nan without clusters of several."""
    between: float
    """Median cosine of an image to the most alike image of any other cluster."""
    apart: tuple[tuple[int, int, float], ...]
    """Pairs of different clusters above `limit`, the most alike first: near-duplicates that were not found?"""
    together: tuple[tuple[int, int, float], ...]
    """Pairs of one cluster below `limit`, the least alike first: joined by mistake?"""

    @property
    def limit(self) -> float:
        """Half-way between the two medians."""
        return (self.within + self.between) / 2


def embedding_duplicates(features: Features, clusters: Clusters, *, most: int) -> EmbeddingDuplicates:
    """Compare cosines of `features` (N, P) with `clusters` (N,); at most `most` pairs of a kind, each image once in it.

    Takes time in N squared. Raises ValueError with fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        raise ValueError("one cluster holds every image")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    blocks = [_extremes(unit, clusters, slice(start, start + BLOCK)) for start in range(0, len(unit), BLOCK)]
    nearest, near, farthest, far = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    joined = np.isfinite(far)
    within = float(np.median(far[joined])) if joined.any() else float("nan")
    between = float(np.median(near))
    limit = (within + between) / 2
    return EmbeddingDuplicates(
        within,
        between,
        _pairs(nearest, near, near > limit, most=most, highest=True),
        _pairs(farthest, far, joined & (far < limit), most=most, highest=False),
    )


def _extremes(unit: Features, clusters: Clusters, rows: slice) -> tuple[Clusters, Features, Clusters, Features]:
    """For some rows: the most alike image elsewhere with its cosine, and the least alike of the own cluster."""
    cosines = unit[rows] @ unit.T
    own = clusters[rows, None] == clusters
    elsewhere = np.where(own, -np.inf, cosines)
    own[np.arange(len(cosines)), np.arange(rows.start, rows.start + len(cosines))] = False  # not itself
    inside = np.where(own, cosines, np.inf)
    return elsewhere.argmax(axis=1), elsewhere.max(axis=1), inside.argmin(axis=1), inside.min(axis=1)


def _pairs(
    other: Clusters, cosines: Features, wanted: NDArray[np.bool_], *, most: int, highest: bool
) -> tuple[tuple[int, int, float], ...]:
    found: list[tuple[int, int, float]] = []
    taken: set[int] = set()
    order = np.argsort(-cosines if highest else cosines, kind="stable")
    for one in order[wanted[order]].tolist():
        pair = {one, int(other[one])}
        if not pair & taken and len(found) < most:
            found.append((min(pair), max(pair), float(cosines[one])))
            taken |= pair
    return tuple(found)

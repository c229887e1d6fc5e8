"""Nearest neighbors in an embedding: MCC of their majority, and near-duplicates by cosine.

Shapes: N images, P features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc

Features = NDArray[np.floating]
Clusters = NDArray[np.int64]
KNN_NEIGHBORS = 10
BLOCK = 1024
"""Images that are compared with all others at a time."""


@dataclass(frozen=True)
class EmbeddingDuplicates:
    """Cosines between images of one cluster of near-duplicates, and between images of different clusters."""

    within: float
    """Median cosine of an image and the least similar image of its own cluster; nan if no cluster has two images."""
    between: float
    """Median cosine of an image and the most similar image of any other cluster."""
    missed: tuple[tuple[int, int, float], ...]
    """Pairs of different clusters above `limit`, the most similar first: possibly missed near-duplicates."""
    doubtful: tuple[tuple[int, int, float], ...]
    """Pairs of one cluster below `limit`, the least similar first: possibly no near-duplicates."""

    @property
    def limit(self) -> float:
        """The mean of the two medians."""
        return (self.within + self.between) / 2


def knn_mcc(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: Sequence[str], *, k: int = KNN_NEIGHBORS
) -> float:
    """MCC of the majority label of the k nearest images of other groups, by cosine: how well an embedding separates.

    Neighbors in the same group are excluded, since frames of one track would predict each other.

    Args:
        features: (N, P)
        labels: (N,) 0 or 1.
        groups: (N,)
        k: number of neighbors. A tie predicts 0.

    Returns:
        The MCC, or nan if an image has fewer than k images in other groups.
    """
    unit = _unit_length(features)
    similarities = unit @ unit.T
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    same_group = number[:, None] == number
    if (~same_group).sum(axis=1).min() < k:
        return float("nan")
    similarities[same_group] = -np.inf
    nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    votes = labels[nearest].sum(axis=1)
    return float(mcc(confusion_counts(labels, 2 * votes > k)))


def embedding_duplicates(features: Features, clusters: Clusters, *, max_pairs: int) -> EmbeddingDuplicates:
    """Compare the cosines of features (N, P) with clusters (N,). The time is quadratic in N.

    Args:
        features: (N, P)
        clusters: (N,) cluster number of each image.
        max_pairs: the most pairs to list of each kind; an image occurs in one pair of a kind only.

    Raises:
        ValueError: fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        raise ValueError("all images are in one cluster")
    unit = _unit_length(features)
    blocks = [_extremes(unit, clusters, slice(start, start + BLOCK)) for start in range(0, len(unit), BLOCK)]
    nearest, nearest_cosine, farthest, farthest_cosine = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    has_cluster = np.isfinite(farthest_cosine)
    within = float(np.median(farthest_cosine[has_cluster])) if has_cluster.any() else float("nan")
    between = float(np.median(nearest_cosine))
    limit = (within + between) / 2
    doubtful = has_cluster & (farthest_cosine < limit)
    return EmbeddingDuplicates(
        within,
        between,
        missed=_pairs(nearest, nearest_cosine, nearest_cosine > limit, max_pairs, descending=True),
        doubtful=_pairs(farthest, farthest_cosine, doubtful, max_pairs, descending=False),
    )


def _unit_length(features: NDArray[np.floating]) -> Features:
    unit: Features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _extremes(unit: Features, clusters: Clusters, rows: slice) -> tuple[Clusters, Features, Clusters, Features]:
    """For some rows: the most similar image of another cluster, the least similar of the own one; with cosines."""
    cosines = unit[rows] @ unit.T
    own = clusters[rows, None] == clusters
    elsewhere = np.where(own, -np.inf, cosines)
    # An image is not compared with itself.
    own[np.arange(len(cosines)), np.arange(rows.start, rows.start + len(cosines))] = False
    inside = np.where(own, cosines, np.inf)
    return elsewhere.argmax(axis=1), elsewhere.max(axis=1), inside.argmin(axis=1), inside.min(axis=1)


def _pairs(
    counterpart: Clusters, cosines: Features, selected: NDArray[np.bool_], max_pairs: int, *, descending: bool
) -> tuple[tuple[int, int, float], ...]:
    """The selected pairs of an image and its counterpart in order of cosine, each image in one pair only."""
    pairs: list[tuple[int, int, float]] = []
    used: set[int] = set()
    order = np.argsort(-cosines if descending else cosines, kind="stable")
    for image in order[selected[order]].tolist():
        pair = {image, int(counterpart[image])}
        if not pair & used and len(pairs) < max_pairs:
            pairs.append((min(pair), max(pair), float(cosines[image])))
            used |= pair
    return tuple(pairs)

"""Find near-duplicates: copies of one photograph, and similar views.

Candidates have similar perceptual hashes. A candidate is a copy if the details of both images agree (`copies`), and a
similar view if only their thumbnails correlate: neighboring frames of a ride, or two roads seen by one fixed camera.
Both kinds are kept in one split. Only copies must have the same label.

A crop is found by comparing whole images with trimmed ones. Images smaller than TINY_SIZE have no reliable hash. Each
of them is correlated with all other images, in time proportional to their number times the number of images. They need
a higher correlation, because at that size different images of one kind of object are similar.

The frames of one fixed camera are all candidates of each other. Only the CLOSEST candidates of each image are therefore
aligned, and as many random ones are correlated, which connect the frames to one cluster. Images with fewer candidates
are compared with all of them.

Shapes: N images, P pairs, S pixels per side. A view is an image at one of TRIMS.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from streetvision.contracts.progress import Progress
from streetvision.data.config import CORRELATION, RADIUS
from streetvision.data.grouping.closest_pairs import ClosestPairs, Ranks
from streetvision.data.grouping.connected_components import components_of_pairs
from streetvision.data.grouping.copies import detail_signs, find_copies
from streetvision.data.grouping.hamming import Positions, pair_blocks
from streetvision.data.grouping.perceptual_hash import (
    THUMBNAIL_SIZE,
    TRIMS,
    WORKING_SIZE,
    PerceptualHashes,
    Thumbnails,
)

TINY_CORRELATION = 0.97
"""Minimum correlation if one of two images is tiny. At 0.90, 1,791 of a million pairs of different signs merged."""
COMPARED_SIZE = THUMBNAIL_SIZE // 2
"""Pixels per side at which thumbnails are correlated."""
CLOSEST = 16
"""Number of candidates per image that are aligned, those with the most similar details, and of random candidates that
are only correlated. A copy that is cropped or rotated can be missed if more other candidates are closer."""
BLOCK = 1024
"""Number of thumbnails converted to float at a time."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near-duplicates and their clusters."""

    pairs: Positions
    """(P, 2) positions i < j, sorted, each pair once."""
    correlations: Vectors
    """(P,) of their thumbnails."""
    copies: npt.NDArray[np.bool_]
    """(P,) whether the pair is a copy; else it is a similar view."""
    candidates: int
    """Number of pairs that were compared: those with similar hashes, and tiny images with a high correlation."""
    clusters: Positions
    """(N,) cluster of each image, by all pairs; an image without near-duplicates is a cluster of its own."""
    copy_clusters: Positions
    """(N,) the same by the copies alone."""


def find_near_duplicates(
    hashes: PerceptualHashes,
    *,
    radius: int = RADIUS,
    correlation: float = CORRELATION,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Find pairs with hashes within `radius` that are copies, or have at least the given correlation.

    A pair with a tiny image needs no similar hash, but at least TINY_CORRELATION. Blank images are in no pair. All such
    pairs are found between images with at most CLOSEST candidates. Of the others, each is compared with its CLOSEST
    candidates and as many random ones, so that the number of comparisons is proportional to the number of images. All
    pairs with similar hashes are ranked for this.
    """
    n = len(hashes.tiny)
    signs = detail_signs(hashes.thumbnails)
    salt = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)

    def different_signs(pairs: Positions) -> Ranks:
        first, second = signs[pairs[:, 0]], signs[pairs[:, 1]]
        distance: Ranks = np.bitwise_count(first ^ second).sum(axis=1, dtype=np.uint64)
        return distance

    def random_order(pairs: Positions) -> Ranks:
        return salt[pairs[:, 0]] * salt[pairs[:, 1]]

    closest, random = (ClosestPairs(n, limit=CLOSEST, rank=rank) for rank in (different_signs, random_order))
    for block in chain(_hash_pairs(hashes, radius), _tiny_pairs(hashes, max(correlation, TINY_CORRELATION))):
        closest.add(block)
        random.add(block)
    close = closest.pairs()
    pairs, position = np.unique(np.concatenate([close, random.pairs()]), axis=0, return_inverse=True)
    aligned = position.reshape(-1)[: len(close)]  # NumPy 2.0 has another shape than later versions
    correlations = _correlate(pairs, hashes.thumbnails)
    copies = np.zeros(len(pairs), dtype=np.bool_)
    copies[aligned] = find_copies(close, hashes.thumbnails, progress=progress)
    accepted = copies | (correlations >= correlation)
    n_compared = len(pairs)
    pairs, correlations, copies = pairs[accepted], correlations[accepted], copies[accepted]
    clusters, copy_clusters = components_of_pairs(pairs, n), components_of_pairs(pairs[copies], n)
    return NearDuplicates(pairs, correlations, copies, n_compared, clusters, copy_clusters)


def _hash_pairs(hashes: PerceptualHashes, radius: int) -> Iterator[Positions]:
    """Pairs of images with reliable hashes: the whole of one is similar to the whole or a trim of the other."""
    usable = np.flatnonzero(~hashes.tiny & ~hashes.blank)
    whole = hashes.hashes[usable, 0]
    for view in range(len(TRIMS)):
        for pairs in pair_blocks(whole, radius, others=hashes.hashes[usable, view] if view else None):
            yield _ordered(usable[pairs])


def _tiny_pairs(hashes: PerceptualHashes, correlation: float) -> Iterator[Positions]:
    """Pairs with a tiny image and at least the correlation: each tiny image against all images, in blocks."""
    usable = ~hashes.blank
    tiny, every = np.flatnonzero(hashes.tiny & usable), np.flatnonzero(usable)
    for rows in _blocks(tiny):
        row_views = _views(hashes.thumbnails[rows])
        for columns in _blocks(every):
            column_views = _views(hashes.thumbnails[columns])
            highest = np.max([left @ right.T for left, right in _view_pairs(row_views, column_views)], axis=0)
            i, j = np.nonzero(highest >= correlation)
            yield _ordered(np.stack([rows[i], columns[j]], axis=1))


def _ordered(pairs: Positions) -> Positions:
    """The pairs (P, 2) with the lower position first, without pairs of an image with itself."""
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    ordered: Positions = np.stack([first, second], axis=1)[first < second]
    return ordered


def _correlate(pairs: Positions, thumbnails: Thumbnails) -> Vectors:
    """(P,) the highest correlation of each pair: of both whole images, or of one whole and one trimmed."""
    correlations = [np.empty(0, dtype=np.float32)]
    for block in _blocks(pairs):
        images, position = np.unique(block, return_inverse=True)
        views = _views(thumbnails[images])
        first, second = ([view[positions] for view in views] for positions in position.reshape(-1, 2).T)
        products = [np.einsum("ps,ps->p", left, right) for left, right in _view_pairs(first, second)]
        correlations.append(np.max(products, axis=0))
    return np.concatenate(correlations)


def _blocks(values: Positions) -> Iterator[Positions]:
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK]


def _view_pairs(first: list[Vectors], second: list[Vectors]) -> list[tuple[Vectors, Vectors]]:
    """The pairs of views that are compared: the whole of each side with every view of the other side."""
    return [(first[0], view) for view in second] + [(view, second[0]) for view in first[1:]]


def _views(thumbnails: Thumbnails) -> list[Vectors]:
    """For each of TRIMS, the thumbnails as vectors (N, S * S) of mean 0 and length 1: products are correlations."""
    squares = thumbnails.reshape(len(thumbnails), COMPARED_SIZE, 2, COMPARED_SIZE, 2)
    whole: Vectors = squares.mean(axis=(2, 4), dtype=np.float32)
    views = []
    for trim in TRIMS:
        images = whole
        if trim:
            sampling = trim_matrix(trim, COMPARED_SIZE)
            images = np.matmul(np.matmul(sampling, images), sampling.T)
        vectors = images.reshape(len(images), COMPARED_SIZE**2)
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        views.append(vectors)
    return views


def trim_matrix(trim: int, size: int) -> Vectors:
    """(S, S): linear resampling of one axis without `trim` of WORKING_SIZE pixels at each edge."""
    edge = trim / WORKING_SIZE * size
    pixel = np.arange(size)
    centres = edge + (pixel + 0.5) * (size - 2 * edge) / size - 0.5
    low = np.clip(np.floor(centres).astype(int), 0, size - 2)
    weight = (centres - low).astype(np.float32)
    matrix = np.zeros((size, size), dtype=np.float32)
    matrix[pixel, low], matrix[pixel, low + 1] = 1 - weight, weight
    return matrix

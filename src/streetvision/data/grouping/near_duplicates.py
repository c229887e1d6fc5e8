"""Which images show nearly the same picture: found by hash, verified by correlation, joined to clusters.

A crop is found by comparing whole images with trimmed ones. Images smaller than a thumbnail have no hash worth the
name: each is correlated with all others, which takes time in their number times that of all, and by a stricter limit,
since at that size different pictures of one kind of object are much alike.

Legend: N images, P pairs, T the side of a thumbnail.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from streetvision.data.config import CORRELATION, RADIUS
from streetvision.data.grouping.hamming import Positions, pairs_within
from streetvision.data.perceptual_hash import THUMBNAIL, TRIMS, WORKING, PerceptualHashes, Thumbnails

TINY_CORRELATION = 0.97
"""The same where one of the two is tiny: by 0.90, 1,791 in a million pairs of different traffic signs were merged."""
BLOCK = 1024
"""Thumbnails that are unpacked at a time."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that show nearly the same, and what they join."""

    pairs: Positions
    """(P, 2) positions i < j, sorted, each once."""
    correlations: Vectors
    """(P,) of their thumbnails."""
    candidates: int
    """Pairs that were compared by correlation because their hashes are near."""
    clusters: Positions
    """(N,) number of an image's cluster; an image without a near-duplicate is a cluster of its own."""


def find_near_duplicates(
    looks: PerceptualHashes, *, radius: int = RADIUS, correlation: float = CORRELATION
) -> NearDuplicates:
    """All pairs within `radius` bits whose thumbnails correlate by at least `correlation`.

    With a tiny image in it, a pair needs TINY_CORRELATION, or more if more is asked, and no hash. Blank images are in
    no pair.
    """
    hashed = _hash_pairs(looks, radius)
    correlations = _correlate(hashed, looks.thumbnails)
    tiny = list(_tiny_pairs(looks, max(correlation, TINY_CORRELATION)))
    near = correlations >= correlation
    pairs = np.concatenate([hashed[near], *(pairs for pairs, _ in tiny)])
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    known = np.concatenate([correlations[near], *(found for _, found in tiny)])[first]
    return NearDuplicates(pairs, known, len(hashed), _clusters(pairs, len(looks.tiny)))


def _hash_pairs(looks: PerceptualHashes, radius: int) -> Positions:
    """(P, 2) of the images large enough for a hash: where the whole of one is near the whole or a trim of the other."""
    usable = np.flatnonzero(~looks.tiny & ~looks.blank)
    whole = looks.hashes[usable, 0]
    found = [pairs_within(whole, radius)]
    found += [pairs_within(whole, radius, others=looks.hashes[usable, view]) for view in range(1, len(TRIMS))]
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(usable[pairs[pairs[:, 0] < pairs[:, 1]]], axis=0)


def _tiny_pairs(looks: PerceptualHashes, correlation: float) -> Iterator[tuple[Positions, Vectors]]:
    """Pairs that a tiny image is in, and how they correlate: each tiny image against all, in blocks."""
    seen = ~looks.blank
    tiny, every = np.flatnonzero(looks.tiny & seen), np.flatnonzero(seen)
    for rows in _blocks(tiny):
        one = _views(looks.thumbnails[rows])
        for columns in _blocks(every):
            other = _views(looks.thumbnails[columns])
            together = np.max([left @ right.T for left, right in _pairings(one, other)], axis=0)
            i, j = np.nonzero(together >= correlation)
            pairs = np.sort(np.stack([rows[i], columns[j]], axis=1), axis=1)
            apart = pairs[:, 0] < pairs[:, 1]
            yield pairs[apart], together[i, j][apart]


def _correlate(pairs: Positions, thumbnails: Thumbnails) -> Vectors:
    """(P,) the highest correlation of each pair: both whole, or one of them trimmed."""
    correlations = [np.empty(0, dtype=np.float32)]
    for block in _blocks(pairs):
        one, other = (_views(thumbnails[block[:, side]]) for side in (0, 1))
        products = [np.einsum("pt,pt->p", left, right) for left, right in _pairings(one, other)]
        correlations.append(np.max(products, axis=0))
    return np.concatenate(correlations)


def _blocks(values: Positions) -> Iterator[Positions]:
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK]


def _views(thumbnails: Thumbnails) -> list[Vectors]:
    """The thumbnails as vectors, whole and at each further trim."""
    return [_vectors(thumbnails, trim) for trim in TRIMS]


def _pairings(one: list[Vectors], other: list[Vectors]) -> list[tuple[Vectors, Vectors]]:
    """Which views meet: the whole of each side with every view of the other side, once."""
    return [(one[0], view) for view in other] + [(view, other[0]) for view in one[1:]]


def _vectors(thumbnails: Thumbnails, trim: int = 0) -> Vectors:
    """(N, T * T) of mean 0 and length 1, so that their products are correlations."""
    pictures: Vectors = thumbnails.astype(np.float32)
    if trim:
        sampling = _trimming(trim)
        pictures = np.matmul(np.matmul(sampling, pictures), sampling.T)
    flat = pictures.reshape(len(pictures), THUMBNAIL * THUMBNAIL)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat


def _trimming(trim: int) -> Vectors:
    """(T, T): what samples a thumbnail's axis anew between its edges moved in by `trim` of WORKING, linearly."""
    edge = trim / WORKING * THUMBNAIL
    centres = edge + (np.arange(THUMBNAIL) + 0.5) * (THUMBNAIL - 2 * edge) / THUMBNAIL - 0.5
    low = np.clip(np.floor(centres).astype(int), 0, THUMBNAIL - 2)
    share = (centres - low).astype(np.float32)
    sampling = np.zeros((THUMBNAIL, THUMBNAIL), dtype=np.float32)
    rows = np.arange(THUMBNAIL)
    sampling[rows, low], sampling[rows, low + 1] = 1 - share, share
    return sampling


def _clusters(pairs: Positions, n: int) -> Positions:
    links = coo_array((np.ones(len(pairs), dtype=np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, clusters = connected_components(links, directed=False)
    return np.asarray(clusters, dtype=np.int64)

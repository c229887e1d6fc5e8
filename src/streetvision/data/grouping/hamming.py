"""Exact search for all pairs of 64-bit hashes within a Hamming radius. Large sets are not compared pair by pair.

Multi-index hashing: two hashes within radius r = 4a + b (0 <= b < 4) differ in at most a bits in one of the first b + 1
of their four 16-bit chunks, or in at most a - 1 bits in one of the other chunks. Only hashes with such a chunk are
compared in full.

References:
    Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing", arXiv 1307.2982,
    section 3.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

CHUNKS = 4
CHUNK_BITS = 16
MAX_COMPARISONS = 2**20
"""Number of comparisons in memory at a time."""


def pairs_within(hashes: Hashes, radius: int, *, others: Hashes | None = None) -> Positions:
    """Find all pairs of hashes that differ in at most `radius` bits.

    Returns:
        (P, 2) positions (i, j) in `hashes` and `others`, sorted, each pair once. Without `others`, both are positions
        in `hashes`, and i < j.
    """
    pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *pair_blocks(hashes, radius, others=others)])
    return np.unique(pairs, axis=0)


def pair_blocks(hashes: Hashes, radius: int, *, others: Hashes | None = None) -> Iterator[Positions]:
    """Yield the pairs of `pairs_within` in blocks that need little memory. A pair may be yielded several times."""
    table = hashes if others is None else others
    for block in _unordered_pairs(hashes, table, radius):
        if others is None:
            low, high = block.min(axis=1), block.max(axis=1)
            block = np.stack([low, high], axis=1)[low < high]
        yield block


def _unordered_pairs(hashes: Hashes, table: Hashes, radius: int) -> Iterator[Positions]:
    if len(hashes) * len(table) <= MAX_COMPARISONS:  # a comparison of all is faster
        yield np.argwhere(np.bitwise_count(hashes[:, None] ^ table) <= radius)
        return
    whole, rest = divmod(radius, CHUNKS)
    radii = [whole if chunk <= rest else whole - 1 for chunk in range(CHUNKS)]
    for chunk, chunk_radius in enumerate(radii):
        if chunk_radius < 0:
            continue
        for block in _pairs_by_chunk(hashes, table, chunk=chunk, chunk_radius=chunk_radius, radius=radius):
            # A pair that is similar in several chunks is yielded for the first of them.
            chunks = (hashes[block[:, 0]] ^ table[block[:, 1]])[:, None].view(np.uint16)
            new = (np.bitwise_count(chunks[:, :chunk]) > radii[:chunk]).all(axis=1)
            yield block[new]


def _pairs_by_chunk(
    hashes: Hashes, table: Hashes, *, chunk: int, chunk_radius: int, radius: int
) -> Iterator[Positions]:
    """Pairs within `radius` whose `chunk` differs in at most `chunk_radius` bits."""
    order, keys = _sorted_by_chunk(hashes, chunk)
    table_order, table_keys = _sorted_by_chunk(table, chunk)
    queries, candidates = hashes[order], table[table_order]
    # The candidates with chunk value v are those from starts[v] to starts[v + 1].
    starts = np.searchsorted(table_keys, np.arange(2**CHUNK_BITS + 1)).astype(np.int32)
    values = np.arange(2**CHUNK_BITS, dtype=np.uint16)
    for mask in values[np.bitwise_count(values) <= chunk_radius].tolist():
        # Within one set, each pair meets twice per mask. Only the hash without the top bit of the mask is a query.
        top_bit = 1 << mask.bit_length() >> 1
        active = np.flatnonzero(keys & top_bit == 0) if hashes is table else np.arange(len(keys))
        matching_keys = keys[active] ^ mask
        first = starts[matching_keys]
        counts = starts[matching_keys + 1] - first
        for query, candidate in _compare(queries[active], candidates, first=first, counts=counts, radius=radius):
            yield np.stack([order[active[query]], table_order[candidate]], axis=1)


def _sorted_by_chunk(hashes: Hashes, chunk: int) -> tuple[Positions, Slots]:
    """The order that sorts `hashes` by a chunk, and the sorted values of the chunk."""
    keys = (hashes >> np.uint64(chunk * CHUNK_BITS)).astype(np.uint16)
    order = np.argsort(keys, kind="stable")
    return order, keys[order].astype(np.int32)


def _compare(
    queries: Hashes, candidates: Hashes, *, first: Slots, counts: Slots, radius: int
) -> Iterator[tuple[Positions, Slots]]:
    """Positions (query, candidate) within `radius`, in blocks of at most MAX_COMPARISONS.

    Query q is compared with the `counts[q]` candidates from `first[q]` on. Nearly all time of the search is spent here,
    so the query of a comparison is computed only for the matches.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    begin = 0
    while begin < len(counts):
        before = int(ends[begin - 1]) if begin else 0
        # At least one query, even if it alone has more comparisons than the limit.
        end = max(begin + 1, int(np.searchsorted(ends, before + MAX_COMPARISONS, side="right")))
        block_counts = counts[begin:end]
        block_ends = ends[begin:end] - before
        candidate = np.repeat(first[begin:end] - (block_ends - block_counts).astype(np.int32), block_counts)
        candidate += np.arange(len(candidate), dtype=np.int32)
        difference = np.repeat(queries[begin:end], block_counts)
        difference ^= candidates[candidate]
        near = np.flatnonzero(np.bitwise_count(difference) <= radius)
        if len(near):
            yield begin + np.searchsorted(block_ends, near, side="right"), candidate[near]
        begin = end

"""All pairs of 64-bit hashes within a Hamming radius, exactly, without comparing all with all.

Multi-index hashing: Norouzi, Punjani, Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing",
arXiv 1307.2982, section 3. Two hashes within radius r = 4a + b (0 <= b < 4) are within a of each other in one of the
first b + 1 of their four 16-bit chunks, or within a - 1 in one of the others, so only hashes whose chunks are that
near are compared in full.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]

CHUNKS = 4
CHUNK_BITS = 16
MOST_AT_ONCE = 2**20
"""Comparisons that are in memory at a time."""


def pairs_within(hashes: Hashes, radius: int, *, others: Hashes | None = None) -> Positions:
    """(P, 2) positions (i, j) with `hashes[i]` and `others[j]` at most `radius` bits apart, sorted, each pair once.

    Without `others` the pairs are among `hashes` themselves, with i < j.
    """
    table = hashes if others is None else others
    found = [np.empty((0, 2), dtype=np.int64)]
    for chunk, reach in _reaches(radius):
        found.extend(_pairs_by_chunk(hashes, table, chunk=chunk, reach=reach, radius=radius))
    pairs = np.concatenate(found)
    if others is None:
        pairs = np.sort(pairs, axis=1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return np.unique(pairs, axis=0)


def _reaches(radius: int) -> Iterator[tuple[int, int]]:
    """(chunk, how many of its bits may differ), for the chunks that need looking at."""
    whole, rest = divmod(radius, CHUNKS)
    for chunk in range(CHUNKS):
        reach = whole if chunk <= rest else whole - 1
        if reach >= 0:
            yield chunk, reach


def _pairs_by_chunk(hashes: Hashes, table: Hashes, *, chunk: int, reach: int, radius: int) -> Iterator[Positions]:
    """Pairs within `radius` whose `chunk` differs in at most `reach` bits."""
    order, keys = _sorted_by_chunk(hashes, chunk)
    table_order, table_keys = _sorted_by_chunk(table, chunk)
    queries, answers = hashes[order], table[table_order]
    starts = np.searchsorted(table_keys, np.arange(2**CHUNK_BITS + 1)).astype(np.int32)
    for mask in _masks(reach):
        # Among themselves, hashes meet under each mask twice: the one with the mask's top bit unset asks.
        asking = np.flatnonzero(keys & _top_bit(mask) == 0) if hashes is table else np.arange(len(keys))
        partners = keys[asking] ^ mask
        first = starts[partners]
        counts = starts[partners + 1] - first
        for left, right in _near(queries[asking], answers, first=first, counts=counts, radius=radius):
            yield np.stack([order[asking[left]], table_order[right]], axis=1)


def _near(
    queries: Hashes, answers: Hashes, *, first: Slots, counts: Slots, radius: int
) -> Iterator[tuple[Positions, Slots]]:
    """Positions (query, answer) within `radius`: each query against the `counts` answers from `first` on, in portions.

    Here nearly all the time is spent, so what is not near is never told apart by its query.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    done = 0
    while done < len(counts):
        before = int(ends[done - 1]) if done else 0
        until = max(done + 1, int(np.searchsorted(ends, before + MOST_AT_ONCE, side="right")))
        here = counts[done:until]
        behind = ends[done:until] - before
        answer = np.repeat(first[done:until] - (behind - here).astype(np.int32), here)
        answer += np.arange(len(answer), dtype=np.int32)
        differing = np.repeat(queries[done:until], here)
        differing ^= answers[answer]
        near = np.flatnonzero(np.bitwise_count(differing) <= radius)
        if len(near):
            yield done + np.searchsorted(behind, near, side="right"), answer[near]
        done = until


def _sorted_by_chunk(hashes: Hashes, chunk: int) -> tuple[Positions, Slots]:
    """The order that sorts `hashes` by a chunk, and the chunk's values in it."""
    keys = (hashes >> np.uint64(chunk * CHUNK_BITS)).astype(np.uint16)
    order = np.argsort(keys, kind="stable")
    return order, keys[order].astype(np.int32)


def _masks(reach: int) -> list[int]:
    """Every value of a chunk with at most `reach` bits set."""
    values = np.arange(2**CHUNK_BITS, dtype=np.uint16)
    return [int(value) for value in values[np.bitwise_count(values) <= reach]]


def _top_bit(mask: int) -> int:
    return 1 << mask.bit_length() >> 1

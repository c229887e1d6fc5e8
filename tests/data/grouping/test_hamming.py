import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.data.grouping.hamming import pairs_within


@pytest.fixture(scope="module", autouse=True, params=[1, 1000, 2**20], ids="at most {} comparisons".format)
def search(request):
    """Searches by an index, in blocks of one query and of several, and by a comparison of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streetvision.data.grouping.hamming.MAX_COMPARISONS", request.param)
        yield


def all_pairs(hashes, others, radius):
    distance = np.bitwise_count(hashes[:, None] ^ others[None])
    return np.argwhere(distance <= radius)


def clustered_hashes(rng, n):
    """Hashes around a few centers, so that every distance occurs."""
    centers = rng.integers(0, 2**64, 5, dtype=np.uint64)[rng.integers(0, 5, n)]
    flips = rng.random((n, 64)) < rng.random((n, 1)) * 0.3
    return centers ^ np.packbits(flips, axis=1).view(np.uint64)[:, 0]


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 8, 12, 15])
def test_it_finds_the_same_pairs_as_a_comparison_of_all(radius):
    hashes = clustered_hashes(np.random.default_rng(radius), 300)
    expected = all_pairs(hashes, hashes, radius)
    expected = expected[expected[:, 0] < expected[:, 1]]
    assert radius < 8 or len(expected) > 100
    np.testing.assert_array_equal(pairs_within(hashes, radius), expected)


@pytest.mark.parametrize("radius", [0, 5, 12])
def test_two_sets(radius):
    both = clustered_hashes(np.random.default_rng(radius), 300)
    hashes, others = both[:120], both[120:]
    np.testing.assert_array_equal(pairs_within(hashes, radius, others=others), all_pairs(hashes, others, radius))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=6), st.integers(0, 11))
def test_any_hashes(values, radius):
    hashes = np.array(values, dtype=np.uint64)
    expected = all_pairs(hashes, hashes, radius).reshape(-1, 2)
    np.testing.assert_array_equal(pairs_within(hashes, radius), expected[expected[:, 0] < expected[:, 1]])


def test_many_equal_hashes_are_all_paired():
    assert len(pairs_within(np.full(200, 7, dtype=np.uint64), 0)) == 200 * 199 // 2

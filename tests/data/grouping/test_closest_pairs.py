import numpy as np
import pytest

from streetvision.data.grouping.closest_pairs import ClosestPairs

N = 30


@pytest.mark.parametrize("pending", [1, 2**20])
@pytest.mark.parametrize("limit", [1, 5, N])
def test_the_closest_pairs_of_each_image_are_selected(monkeypatch, pending, limit):
    monkeypatch.setattr("streetvision.data.grouping.closest_pairs.MIN_PENDING", pending)
    rng = np.random.default_rng(limit)
    ranks = np.triu(rng.permutation(N * N).reshape(N, N), 1).astype(np.uint64)
    selection = ClosestPairs(N, limit=limit, rank=lambda pairs: ranks[pairs[:, 0], pairs[:, 1]])
    every = np.argwhere(np.triu(np.ones((N, N)), 1))
    for block in np.array_split(rng.permutation(np.concatenate([every, every])), 20):
        selection.add(block)
    symmetric = ranks + ranks.T
    expected = {
        (min(i, j), max(i, j))
        for i in range(N)
        for j in sorted(set(range(N)) - {i}, key=lambda j, i=i: symmetric[i, j])[:limit]
    }
    assert list(map(tuple, selection.pairs().tolist())) == sorted(expected)
    assert len(expected) == len(every) or limit < N


def test_no_pairs():
    assert ClosestPairs(0, limit=3, rank=lambda pairs: np.zeros(len(pairs), np.uint64)).pairs().shape == (0, 2)

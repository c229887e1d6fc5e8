import numpy as np
import pytest

from streetvision.eval import embedding_duplicates as module
from streetvision.eval.embedding_duplicates import embedding_duplicates


@pytest.fixture
def circle():
    """Six pairs of near-duplicates around a circle, one of them not found, and one image joined to a stranger."""
    angles = np.repeat(np.arange(6) * 1.0, 2) + np.tile([0.0, 0.01], 6)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    clusters = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6])  # 8 and 9 were not found
    return features, clusters


def test_a_pair_that_was_not_found(circle):
    found = embedding_duplicates(*circle, most=5)
    assert found.within == pytest.approx(np.cos(0.01))
    assert found.limit == pytest.approx((np.cos(0.01) + np.cos(0.99)) / 2, abs=0.3)
    assert [pair[:2] for pair in found.apart] == [(8, 9)]
    assert found.together == ()


def test_a_pair_that_was_joined_by_mistake(circle):
    features, clusters = circle
    clusters[5] = 0  # the second of the third pair among the first
    found = embedding_duplicates(features, clusters, most=1)
    assert [set(pair[:2]) & {5} for pair in found.together] == [{5}]


def test_without_clusters_nothing_is_as_alike_as_a_copy(circle):
    found = embedding_duplicates(circle[0], np.arange(12), most=5)
    assert np.isnan(found.within)
    assert found.apart == found.together == ()


def test_blocks_change_nothing(circle, monkeypatch):
    whole = embedding_duplicates(*circle, most=5)
    monkeypatch.setattr(module, "BLOCK", 5)
    assert embedding_duplicates(*circle, most=5) == whole


def test_one_cluster_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="one cluster"):
        embedding_duplicates(np.eye(3), np.zeros(3, dtype=np.int64), most=1)

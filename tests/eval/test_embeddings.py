import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef
from sklearn.neighbors import KNeighborsClassifier

from streetvision.eval import embeddings
from streetvision.eval.embeddings import embedding_duplicates, knn_mcc


def rows(n=80, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    return (random.normal(size=(n, 6)) + labels[:, None]).astype(np.float32), labels


def test_knn_mcc_equals_scikit_learn_row_by_row():
    features, labels = rows()
    expected = []
    for row in range(len(labels)):
        others = np.arange(len(labels)) != row
        near = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(features[others], labels[others])
        expected.append(near.predict(features[[row]])[0])
    value = knn_mcc(features, labels, [str(i) for i in range(len(labels))], k=5)
    assert value == pytest.approx(matthews_corrcoef(labels, expected), abs=1e-12)


def test_frames_of_one_track_do_not_predict_each_other():
    random = np.random.default_rng(1)
    tracks = np.repeat(np.arange(20), 12)
    labels = (np.arange(20) % 2)[tracks]
    features = random.normal(size=(20, 8))[tracks] + 0.01 * random.normal(size=(240, 8))
    alone = knn_mcc(features.astype(np.float32), labels, [str(i) for i in range(240)])
    by_track = knn_mcc(features.astype(np.float32), labels, [str(track) for track in tracks])
    assert alone == 1.0
    assert by_track < 0.5


def test_too_few_rows_in_other_groups_give_nan():
    features, labels = rows(12)
    assert math.isnan(knn_mcc(features, labels, ["a"] * 12))


@pytest.fixture
def circle():
    """Six pairs of near-duplicates around a circle, one of them missed."""
    angles = np.repeat(np.arange(6) * 1.0, 2) + np.tile([0.0, 0.01], 6)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    clusters = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6])  # 8 and 9 were missed
    return features, clusters


def test_a_missed_pair(circle):
    result = embedding_duplicates(*circle, max_pairs=5)
    assert result.within == pytest.approx(np.cos(0.01))
    assert result.limit == pytest.approx((np.cos(0.01) + np.cos(0.99)) / 2, abs=0.3)
    assert [pair[:2] for pair in result.missed] == [(8, 9)]
    assert result.doubtful == ()


def test_a_doubtful_pair(circle):
    features, clusters = circle
    clusters[5] = 0  # the second of the third pair among the first
    result = embedding_duplicates(features, clusters, max_pairs=1)
    assert [set(pair[:2]) & {5} for pair in result.doubtful] == [{5}]


def test_without_clusters_there_is_no_cosine_within(circle):
    result = embedding_duplicates(circle[0], np.arange(12), max_pairs=5)
    assert np.isnan(result.within)
    assert result.missed == result.doubtful == ()


def test_the_block_size_does_not_matter(circle, monkeypatch):
    whole = embedding_duplicates(*circle, max_pairs=5)
    monkeypatch.setattr(embeddings, "BLOCK", 5)
    assert embedding_duplicates(*circle, max_pairs=5) == whole


def test_one_cluster_is_an_error():
    with pytest.raises(ValueError, match="one cluster"):
        embedding_duplicates(np.eye(3), np.zeros(3, dtype=np.int64), max_pairs=1)

import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef
from sklearn.neighbors import KNeighborsClassifier

from streetvision.eval.knn import knn_mcc


def rows(n=80, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    return (random.normal(size=(n, 6)) + labels[:, None]).astype(np.float32), labels


def test_it_is_what_scikit_learn_says_row_by_row():
    features, labels = rows()
    said = []
    for row in range(len(labels)):
        others = np.arange(len(labels)) != row
        near = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(features[others], labels[others])
        said.append(near.predict(features[[row]])[0])
    found = knn_mcc(features, labels, [str(i) for i in range(len(labels))], k=5)
    assert found == pytest.approx(matthews_corrcoef(labels, said), abs=1e-12)


def test_frames_of_one_track_do_not_vouch_for_each_other():
    random = np.random.default_rng(1)
    tracks = np.repeat(np.arange(20), 12)
    labels = (np.arange(20) % 2)[tracks]
    features = random.normal(size=(20, 8))[tracks] + 0.01 * random.normal(size=(240, 8))
    alone = knn_mcc(features.astype(np.float32), labels, [str(i) for i in range(240)])
    by_track = knn_mcc(features.astype(np.float32), labels, [str(track) for track in tracks])
    assert alone == 1.0
    assert by_track < 0.5


def test_too_few_rows_elsewhere_have_no_answer():
    features, labels = rows(12)
    assert math.isnan(knn_mcc(features, labels, ["a"] * 12))

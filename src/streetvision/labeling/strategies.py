"""Which images to label next, from frozen features: cluster centers, disagreement of a committee, contradicted labels.

Shapes: N images of the pool, L labeled images, P width of the features, K images to choose.

References:
    Committee by bagging: Abe and Mamitsuka, "Query Learning Strategies Using Boosting and Bagging", ICML 1998.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

COMPONENTS = 512
"""Principal components of the features in which images are compared."""
MEMBERS = 8
"""Classifiers of the committee."""
STRENGTH = 3.0
"""Inverse L2 penalty of a member, for features of which a row has a squared length of about 1."""
EPSILON = 1e-6


def reduce_features(features: NDArray[np.floating], *, seed: int = 0) -> FloatArray:
    """Return standardized features (N, P) as at most COMPONENTS principal components; distances are nearly kept."""
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + EPSILON)
    count = min(COMPONENTS, *x.shape)
    reduced: FloatArray = PCA(count, random_state=seed).fit_transform(x)
    return reduced


def choose_diverse(
    features: FloatArray, groups: Sequence[object], count: int, *, covered: FloatArray | None = None, seed: int = 0
) -> IntArray:
    """Return at most `count` positions: the images nearest to the centers of as many clusters, the largest first.

    Args:
        features: (N, P) of the pool.
        groups: Group of each image (N,). A group gives one image while there are others.
        count: K.
        covered: (L, P) of images that are labeled; clusters that contain one of them are used last. None: none.
        seed: Seed of the clusters.
    """
    count = min(count, len(features))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters
        clusters = KMeans(count, n_init=1, random_state=seed).fit(features)
    distance = np.square(features - clusters.cluster_centers_[clusters.labels_]).sum(axis=1)
    sizes = np.bincount(clusters.labels_, minlength=count)
    used_last = np.zeros(count, dtype=np.bool_)
    if covered is not None and len(covered):
        used_last[clusters.predict(covered)] = True
    chosen: list[int] = []
    used: set[object] = set()
    for cluster in np.lexsort((-sizes, used_last)):
        members = np.flatnonzero(clusters.labels_ == cluster)
        for position in members[np.argsort(distance[members], kind="stable")].tolist():
            if groups[position] not in used:
                chosen.append(position)
                used.add(groups[position])
                break
    # Clusters whose groups are all used leave places, which the nearest images of other groups fill, then any image.
    for repeat in (False, True):
        for position in np.argsort(distance, kind="stable").tolist():
            if len(chosen) == count:
                break
            if position not in chosen and (repeat or groups[position] not in used):
                chosen.append(position)
                used.add(groups[position])
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class Committee:
    """Logistic regressions, each fitted on a bootstrap sample of the labeled groups."""

    probabilities: FloatArray
    """(MEMBERS, N) probability of class 1 for the images of the pool."""
    consensus: FloatArray
    """(N,) probability of class 1 by the classifier that was fitted on all labeled groups."""

    @property
    def entropy(self) -> FloatArray:
        """(N,) entropy in bits of the consensus."""
        return binary_entropy(self.consensus)

    @property
    def disagrees(self) -> NDArray[np.bool_]:
        """(N,) whether members predict different classes."""
        votes = self.probabilities > 0.5
        share = votes.mean(axis=0)
        result: NDArray[np.bool_] = (share > 0) & (share < 1)
        return result


def fit_committee(
    pool: FloatArray, labelled: FloatArray, labels: IntArray, groups: Sequence[object], *, seed: int = 0
) -> Committee:
    """Fit the committee on labeled images of both classes, and predict the pool.

    Args:
        pool: (N, P).
        labeled: (L, P).
        labels: (L,) 0 or 1, with both classes.
        groups: Group of each labeled image (L,); whole groups are drawn.
        seed: Seed of the bootstrap samples.
    """
    rng = np.random.default_rng(seed)
    units = np.unique([str(group) for group in groups], return_inverse=True)[1]
    scale = np.sqrt(np.square(labelled).sum(axis=1).mean()) + EPSILON

    def predict(weights: IntArray) -> FloatArray:
        used = weights > 0
        model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
        model.fit(labelled[used] / scale, labels[used], weights[used])
        probabilities: FloatArray = model.predict_proba(pool / scale)[:, 1]
        return probabilities

    probabilities = np.empty((MEMBERS, len(pool)))
    for member in range(MEMBERS):
        drawn = np.bincount(rng.integers(units.max() + 1, size=units.max() + 1), minlength=units.max() + 1)[units]
        # A sample without one of the classes fits nothing: it gets the first image of the class.
        for label in (0, 1):
            if not drawn[labels == label].any():
                drawn[np.flatnonzero(labels == label)[0]] = 1
        probabilities[member] = predict(drawn)
    return Committee(probabilities, predict(np.ones(len(labels), dtype=np.int64)))


def choose_uncertain(groups: Sequence[object], entropy: FloatArray, count: int) -> IntArray:
    """Return at most `count` positions: the image with the highest entropy of each group, then the other images.

    One of each cluster of uncertain images did worse where the committee is fitted again after few labels.

    Args:
        groups: Group of each image (N,).
        entropy: (N,) of the predictions.
        count: K.
    """
    order = np.argsort(-entropy, kind="stable")
    first = list({groups[i]: i for i in reversed(order.tolist())}.values())
    repeated = np.ones(len(groups), dtype=np.bool_)
    repeated[first] = False
    chosen: IntArray = order[np.argsort(repeated[order], kind="stable")][:count]
    return chosen


def binary_entropy(probabilities: FloatArray) -> FloatArray:
    """Return the entropy in bits of probabilities (...,) of class 1."""
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    entropy: FloatArray = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return entropy

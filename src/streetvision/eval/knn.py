"""What the nearest neighbours of a row say of its label: how far an embedding has sorted the classes by itself."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc

NEIGHBOURS = 10


def knn_mcc(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: Sequence[str], *, k: int = NEIGHBOURS
) -> float:
    """MCC of the majority among the k nearest rows by cosine, none of them of the row's own group.

    `features` are (N, P), `labels` (N,) 0 or 1; a tie counts as 0. Frames of one track would vouch for each other, so
    a row never sees its group. nan where some row has fewer than k rows in other groups.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarities = unit @ unit.T
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    own = number[:, None] == number
    if (~own).sum(axis=1).min() < k:
        return float("nan")
    similarities[own] = -np.inf
    nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    votes = labels[nearest].sum(axis=1)
    return float(mcc(confusion_counts(labels, 2 * votes > k)))

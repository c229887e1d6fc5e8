"""Out-of-fold probabilities of a plain classifier."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streetvision.eval.counts import FloatArray


def out_of_fold_probabilities(
    features: FloatArray, labels: NDArray[np.int64], fold_of: NDArray[np.int64]
) -> FloatArray:
    """Probabilities (N,) of class 1 from a logistic regression fitted on the other folds, with balanced classes.

    Args:
        features: (N, P), standardized here.
        labels: (N,) 0 or 1.
        fold_of: (N,) the fold of each row. A fold gets 0.5 if the other folds lack a class.
    """
    # Not `cross_val_predict`, which fits every fold and fails where a class is missing.
    probabilities = np.full(len(labels), 0.5)
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        if len(np.unique(labels[~held_out])) == 2:
            model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
            model.fit(features[~held_out], labels[~held_out])
            probabilities[held_out] = model.predict_proba(features[held_out])[:, 1]
    return probabilities

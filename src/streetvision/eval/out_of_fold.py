"""What a plain classifier says of rows that it was not fitted on."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

FloatArray = NDArray[np.float64]

RIDGE = 1.0
"""Penalty on the squared weights of standardised features, against the sum of the rows' losses."""


def out_of_fold_probabilities(
    features: FloatArray, labels: NDArray[np.int64], fold_of: NDArray[np.int64]
) -> FloatArray:
    """Probabilities (N,) of class 1 from features (N, P), each by a logistic regression fitted on the other folds.

    Both classes weigh the same, however many rows they have. A fold whose others lack a class gets 0.5.
    """
    probabilities = np.full(len(labels), 0.5)
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        if len(np.unique(labels[~held_out])) == 2:
            mean, scale = features[~held_out].mean(axis=0), features[~held_out].std(axis=0)
            standard = (features - mean) / np.where(scale > 0, scale, 1.0)
            weights = fit_logistic(standard[~held_out], labels[~held_out])
            probabilities[held_out] = expit(standard[held_out] @ weights[:-1] + weights[-1])
    return probabilities


def fit_logistic(features: FloatArray, labels: NDArray[np.int64], *, ridge: float = RIDGE) -> FloatArray:
    """Weights (P + 1,), the intercept last, of a ridge-penalised logistic regression with both classes balanced."""
    signs = 2.0 * labels - 1.0
    balance = len(labels) / (2.0 * np.bincount(labels, minlength=2))[labels]

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        margins = signs * (features @ weights[:-1] + weights[-1])
        pull = -signs * balance * expit(-margins)
        gradient = np.append(features.T @ pull + ridge * weights[:-1], pull.sum())
        value = balance @ np.logaddexp(0.0, -margins) + ridge / 2 * weights[:-1] @ weights[:-1]
        return float(value), gradient

    start = np.zeros(features.shape[1] + 1)
    fitted: FloatArray = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return fitted

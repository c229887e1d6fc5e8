"""Evidence of tiles, fitted to labels of whole images (multiple-instance learning).

The fused log-odds are those of the single view plus b + log(mean over tiles of exp(beta * w @ x)) / beta, where x are a
tile's features after a LayerNorm without parameters. Only w and b are fitted.

Shapes: N images, T tiles, P width of a tile's features, R principal components.

References:
    Log-sum-exp pooling of instances: Ramon and De Raedt 2000, Multi Instance Neural Networks, section 3. Base margins
    from cross-validation: Wolpert 1992, Stacked Generalization, Neural Networks 5, pages 241 to 259.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.utils.extmath import randomized_svd

from streetvision.contracts.progress import Progress
from streetvision.models.views import evidence_sharpness
from streetvision.training.probe import grouped_folds

FloatArray = NDArray[np.float64]
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""L2 penalties of w that are tried, from the strongest; features are standardised and the loss is the mean NLL."""
WORSE_PENALTIES = 2
"""Penalties in a row with a higher NLL than the best before, after which no weaker one is tried."""
COMPONENTS = 128
"""Principal components in which w is fitted: all of the features give the same NLL to 0.003 in three times the time."""
ROWS_FOR_COMPONENTS = 2000
"""Tiles, drawn at random, from which the components are computed."""
SEARCH_ITERATIONS, FINAL_ITERATIONS = 50, 300
EPSILON = 1e-6


@dataclass(frozen=True)
class Evidence:
    """A fitted evidence term."""

    weight: FloatArray
    """(P,)"""
    bias: float
    penalty: float
    """The penalty with the lowest NLL."""
    path: tuple[float, ...]
    """NLL at each of the first of PENALTIES, each row predicted by a fit without its group."""
    base_nll: float
    """NLL of the single view on the same rows."""


def fit_evidence(
    features: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[np.int64],
    base: FloatArray,
    groups: Sequence[object],
    *,
    seed: int,
    progress: Progress,
) -> Evidence:
    """Choose the penalty by grouped cross-validation, and fit the evidence.

    Args:
        features: (N, T, P) after a LayerNorm without parameters.
        mask: (N, T), False for tiles that do not count. An image without tiles is predicted by its base margin.
        labels: (N,).
        base: (N,) log-odds of the single view, each by a fit without the group of the row.
        groups: Group of each row (N,).
        seed: Seed of the folds, and of the tiles from which the components are computed.
        progress: Shows a progress bar.

    Raises:
        DataError: A class has one group only.
    """
    tiles = features[mask]
    mean, scale = tiles.mean(axis=0), tiles.std(axis=0) + EPSILON
    drawn = np.random.default_rng(seed).permutation(len(tiles))[:ROWS_FOR_COMPONENTS]
    sample = (tiles[drawn] - mean) / scale
    components = randomized_svd(sample, min(COMPONENTS, *sample.shape), random_state=seed)[2].T  # (P, R)
    directions = (components / scale[:, None]).astype(np.float32)
    inputs = (features.reshape(-1, features.shape[2]) @ directions - mean @ directions).reshape(*mask.shape, -1)

    folds = grouped_folds(labels, groups, seed=seed)
    parts = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(folds.max() + 1)]
    solutions = [np.zeros(inputs.shape[2] + 1) for _ in parts]
    path: list[float] = []
    for penalty in progress.track(PENALTIES, total=len(PENALTIES), label="evidence"):
        margins = np.empty(len(labels))
        for number, (train, test) in enumerate(parts):
            solutions[number] = _solve(
                inputs[train], mask[train], labels[train], base[train], penalty, solutions[number], SEARCH_ITERATIONS
            )
            margins[test] = base[test] + _pooled(inputs[test], mask[test], solutions[number])[0]
        path.append(_nll(margins, labels))
        if len(path) - 1 - int(np.argmin(path)) == WORSE_PENALTIES:
            break
    penalty = PENALTIES[int(np.argmin(path))]
    solution = _solve(inputs, mask, labels, base, penalty, np.zeros(inputs.shape[2] + 1), FINAL_ITERATIONS)
    weight = directions.astype(np.float64) @ solution[:-1]
    return Evidence(weight, float(solution[-1] - mean @ weight), penalty, tuple(path), _nll(base, labels))


def _solve(
    inputs: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[np.int64],
    base: FloatArray,
    penalty: float,
    start: FloatArray,
    iterations: int,
) -> FloatArray:
    """Weight and bias (R + 1,) with the lowest penalised loss, from `start`."""
    signs, flat = 2.0 * labels - 1, inputs.reshape(-1, inputs.shape[2])

    def loss_and_gradient(solution: FloatArray) -> tuple[float, FloatArray]:
        evidence, shares = _pooled(inputs, mask, solution)
        margins = base + evidence
        slopes = -signs * expit(-signs * margins) / len(labels) * mask.any(axis=1)
        by_tile = (slopes[:, None] * shares).astype(np.float32).reshape(-1)
        gradient = np.append(by_tile @ flat + 2 * penalty * solution[:-1], slopes.sum())
        return _nll(margins, labels) + penalty * float(np.square(solution[:-1]).sum()), gradient

    options = {"maxiter": iterations, "gtol": 1e-5}
    result: FloatArray = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    return result


def _pooled(
    inputs: NDArray[np.float32], mask: NDArray[np.bool_], solution: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The evidence (N,), which is 0 without tiles, and the share (N, T) of each tile in its gradient."""
    beta, counts = evidence_sharpness(mask.shape[1]), mask.sum(axis=1)
    scores = (inputs.reshape(-1, inputs.shape[2]) @ solution[:-1].astype(np.float32)).reshape(mask.shape)
    scaled = np.where(mask | (counts == 0)[:, None], beta * scores.astype(np.float64), -np.inf)
    pooled = (logsumexp(scaled, axis=1) - np.log(np.maximum(counts, 1))) / beta + solution[-1]
    return np.where(counts > 0, pooled, 0.0), softmax(scaled, axis=1)


def _nll(margins: FloatArray, labels: NDArray[np.int64]) -> float:
    return float(np.logaddexp(0, np.where(labels == 1, -margins, margins)).mean())

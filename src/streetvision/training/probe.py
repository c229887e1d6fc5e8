"""A linear probe: logistic regression on frozen features, with everything that it chooses chosen on TRAIN.

Shapes: N images, L blocks, K poolings, D width of a token, P width of the features that are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress
from streetvision.data.splitting.stratified import assign_groups

FloatArray = NDArray[np.float64]
FOLDS = 5
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-9, 1))
"""Inverse penalties that are tried, from the strongest penalty to the weakest; features are standardized."""
WORSE_STRENGTHS = 2
"""Penalties in a row with a higher NLL than the best before, after which no weaker one is tried."""
MAX_ITERATIONS = 2000
SEARCH_TOLERANCE, FINAL_TOLERANCE = 1e-2, 1e-6
"""Largest gradient at which lbfgs stops, in the cross-validation and in the final fit."""
EPSILON = 1e-6
NORM_EPSILON = 1e-5
"""Epsilon of torch's LayerNorm."""


@dataclass(frozen=True)
class Representation:
    """Which features the head reads: poolings of the last blocks."""

    pooling: str
    """Names in POOLINGS, joined by an underscore."""
    layers: int


@dataclass(frozen=True)
class Candidate:
    """A representation with its best penalty."""

    representation: Representation
    strength: float
    """Inverse of the L2 penalty with the lowest NLL."""
    nll: float
    """Mean negative log-likelihood of the rows, each predicted by a fit without its group."""
    path: tuple[float, ...]
    """NLL at each of the first of STRENGTHS, up to the weakest penalty that was tried."""
    difference: float
    """NLL minus that of the first candidate."""
    standard_error: float
    """Standard error of the difference, by groups."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: logit = weight @ x + bias, where x are the features after a LayerNorm without parameters."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    weight: FloatArray
    """(P,)."""
    bias: float
    fold_weights: FloatArray | None = None
    """(F, P) under cross_fit: of the fit without each of the F folds; `weight` is their mean. None under split."""
    fold_biases: FloatArray | None = None
    """(F,)."""
    out_of_fold: FloatArray | None = None
    """(N,) under cross_fit: logit of each row by the fit without its fold."""


class FeatureBank:
    """The pooled tokens of several blocks, from which any representation is read.

    Args:
        features: (N, L * K * D), in the order of `Pooling`: all poolings of a block, then those of the next.
        pooling: The K poolings, joined by an underscore.
        layers: L.
    """

    def __init__(self, features: NDArray[np.float32], pooling: str, layers: int) -> None:
        self.parts = pooling.split("_")
        self.blocks = features.reshape(len(features), layers, len(self.parts), -1)  # (N, L, K, D)

    def read(self, representation: Representation) -> FloatArray:
        """Return the features (N, P) after a LayerNorm without parameters, as the head sees them."""
        parts = [self.parts.index(part) for part in representation.pooling.split("_")]
        rows = self.blocks[:, -representation.layers :, parts].reshape(len(self.blocks), -1).astype(np.float64)
        rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + NORM_EPSILON)
        return rows


def fit_probe(
    bank: FeatureBank,
    labels: NDArray[np.int64],
    groups: Sequence[object],
    *,
    representations: Sequence[Representation],
    class_weights: Callable[[NDArray[np.int64]], tuple[float, float]],
    seed: int,
    progress: Progress,
    folds: NDArray[np.int64] | None = None,
) -> LinearProbe:
    """Choose representation and penalty by cross-validation, and fit the probe.

    Without `folds`, the probe is fitted on all rows. With `folds`, it is the mean of one fit without each of them.

    The penalty is the one with the lowest NLL. The first representation is taken unless another one is better by more
    than one standard error of the paired difference: with few groups, the lowest of several NLLs is often chance.

    Args:
        bank: Features of N rows.
        labels: (N,).
        groups: Group of each row (N,); rows of one group are never in different folds.
        representations: The choices, the preferred one first.
        class_weights: Labels of the rows of a fit -> weights of class 0 and class 1.
        seed: Seed of the folds, if `folds` is None.
        progress: Shows a progress bar.
        folds: Fold of each row (N,) under cross_fit; the cross-validation has the same folds.

    References:
        One-standard-error rule: Hastie et al., The Elements of Statistical Learning, 2nd edition, section 7.10.
    """
    weights = np.asarray(class_weights(labels))[labels]
    units = np.unique([str(group) for group in groups], return_inverse=True)[1]
    of_rows = grouped_folds(labels, groups, seed=seed) if folds is None else folds
    parts = [(np.flatnonzero(of_rows != fold), np.flatnonzero(of_rows == fold)) for fold in range(of_rows.max() + 1)]
    candidates: list[Candidate] = []
    reference = np.zeros(0)
    for representation in progress.track(representations, total=len(representations), label="probe"):
        losses = _out_of_fold_losses(bank.read(representation), labels, weights, parts)
        best = int(losses.mean(axis=1).argmin())
        if not candidates:
            reference = losses[best]
        difference = losses[best] - reference
        candidates.append(
            Candidate(
                representation,
                STRENGTHS[best],
                nll=float(losses[best].mean()),
                path=tuple(losses.mean(axis=1).tolist()),
                difference=float(difference.mean()),
                standard_error=_standard_error(difference, units),
            )
        )
    better = [c for c in candidates if c.difference < -c.standard_error]
    chosen = min(better, key=lambda c: c.nll, default=candidates[0])
    features = bank.read(chosen.representation)
    if folds is None:
        weight, bias = _fit(features, labels, weights, chosen.strength)
        return LinearProbe(chosen, tuple(candidates), weight, bias)
    fold_weights, fold_biases, out_of_fold = (
        np.empty((len(parts), features.shape[1])),
        np.empty(len(parts)),
        np.empty(len(labels)),
    )
    for fold, (train, test) in enumerate(parts):
        of_fold = np.asarray(class_weights(labels[train]))[labels[train]]
        fold_weights[fold], fold_biases[fold] = _fit(features[train], labels[train], of_fold, chosen.strength)
        out_of_fold[test] = features[test] @ fold_weights[fold] + fold_biases[fold]
    return LinearProbe(
        chosen,
        tuple(candidates),
        fold_weights.mean(axis=0),
        float(fold_biases.mean()),
        fold_weights,
        fold_biases,
        out_of_fold,
    )


def _out_of_fold_losses(
    features: FloatArray, labels: NDArray[np.int64], weights: FloatArray, folds: Sequence[tuple[NDArray[np.int64], ...]]
) -> FloatArray:
    """Weighted NLL (S, N) of each row, predicted by a fit without its group, at the first S of STRENGTHS."""
    # Standardized once for all folds; this uses no label.
    inputs, _ = _coordinates((features - features.mean(axis=0)) / (features.std(axis=0) + EPSILON))
    losses = np.full((len(STRENGTHS), len(labels)), np.nan)
    models = [LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, tol=SEARCH_TOLERANCE) for _ in folds]
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for number, strength in enumerate(STRENGTHS):
            for model, (train, test) in zip(models, folds, strict=True):
                model.C = strength
                margins = model.fit(inputs[train], labels[train], weights[train]).decision_function(inputs[test])
                losses[number, test] = weights[test] * np.logaddexp(0, np.where(labels[test] == 1, -margins, margins))
            # The fits at weaker penalties are the slowest, and no longer the best once the NLL rises.
            if number - int(losses[: number + 1].mean(axis=1).argmin()) == WORSE_STRENGTHS:
                break
    return losses[: number + 1]


def grouped_folds(labels: NDArray[np.int64], groups: Sequence[object], *, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row (N,): grouped and stratified; fewer than FOLDS where a class has fewer groups.

    The rows outside each fold have both classes.

    Raises:
        DataError: A class has one group only, so a fold without it has one class only.
    """
    units = np.unique([str(group) for group in groups], return_inverse=True)[1]
    count = min(FOLDS, *(len(np.unique(units[labels == label])) for label in (0, 1)))
    if count < 2:
        raise DataError(
            "a penalty cannot be chosen by cross-validation: a class of TRAIN has one group only",
            "add images of other places, or set model.head.kind=mlp, which needs no cross-validation",
        )
    of_rows = np.empty(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, units)):
        of_rows[test] = fold
    # scikit-learn may put all groups of a class in one fold.
    of_groups = np.stack([np.bincount(units[labels == label], minlength=units.max() + 1) for label in (0, 1)], axis=1)
    for fewer in range(count, 1, -1):
        if _can_be_trained(of_rows, labels):
            break
        of_rows = assign_groups(of_groups, np.full(fewer, 1 / fewer), singles=np.zeros(2, dtype=np.int64))[units]
    return of_rows


def _can_be_trained(of_rows: NDArray[np.int64], labels: NDArray[np.int64]) -> bool:
    """Whether every fold has rows, and the rows outside it have both classes."""
    folds = of_rows == np.arange(of_rows.max() + 1)[:, None]
    return bool(folds.any(axis=1).all()) and all(len(np.unique(labels[~fold])) == 2 for fold in folds)


def _standard_error(differences: FloatArray, units: NDArray[np.int64]) -> float:
    """Standard error of the mean of `differences` (N,) when whole groups are drawn."""
    sums = np.bincount(units, weights=differences - differences.mean())
    return float(np.sqrt(np.square(sums).sum() * len(sums) / max(len(sums) - 1, 1)) / len(differences))


def _coordinates(inputs: FloatArray) -> tuple[FloatArray, FloatArray | None]:
    """Return coordinates (N, at most N) with the same inner products as `inputs` (N, P), and the basis (P, at most N).

    A fit with an L2 penalty depends on inner products only. The basis is None if the coordinates are the inputs.
    """
    if inputs.shape[1] <= len(inputs):
        return inputs, None
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    kept = values > values[-1] * 1e-10
    scale = np.sqrt(values[kept])
    return vectors[:, kept] * scale, inputs.T @ (vectors[:, kept] / scale)


def _fit(
    features: FloatArray, labels: NDArray[np.int64], weights: FloatArray, strength: float
) -> tuple[FloatArray, float]:
    """Weight (P,) and bias for features that are not standardized."""
    mean, scale = features.mean(axis=0), features.std(axis=0) + EPSILON
    inputs, basis = _coordinates((features - mean) / scale)
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=FINAL_TOLERANCE)
    model.fit(inputs, labels, weights)
    weight: FloatArray = (model.coef_[0] if basis is None else basis @ model.coef_[0]) / scale
    return weight, float(model.intercept_[0] - weight @ mean)

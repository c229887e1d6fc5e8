"""Out-of-fold probabilities of several calibrators, and convex combinations of them.

Shapes: N rows, M members.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from streetvision.calibration.base import FittedCalibrator
from streetvision.calibration.calibrators import Ensemble, make_calibrator
from streetvision.calibration.config import ENSEMBLE
from streetvision.calibration.crossfit import CalibrationSet, assign_folds, crossfit
from streetvision.eval.counts import FloatArray

MIN_WEIGHT = 1e-3
"""Members with a smaller weight are removed from the ensemble."""

OutOfFold = dict[str, FloatArray]
"""Calibrator -> its cross-fitted probabilities (N,)."""


def out_of_fold(names: Iterable[str], rows: CalibrationSet, *, folds: int, seed: int) -> OutOfFold:
    """Return the cross-fitted probabilities (N,) of each named calibrator."""
    probabilities = {}
    for name in names:

        def fit(part: CalibrationSet, name: str = name) -> FittedCalibrator:
            return make_calibrator(name).fit(part.logits, part.labels)

        probabilities[name] = crossfit(fit, rows, folds=folds, seed=seed)
    return probabilities


def fit_named(name: str, rows: CalibrationSet, weights: Mapping[str, float]) -> FittedCalibrator:
    """Return a calibrator by name, or the ensemble with `weights`, fitted on all rows."""
    if name != ENSEMBLE:
        return make_calibrator(name).fit(rows.logits, rows.labels)
    members: dict[str, FittedCalibrator] = {
        member: make_calibrator(member).fit(rows.logits, rows.labels) for member in weights
    }
    return Ensemble(members, dict(weights))


def ensemble_weights(oof: OutOfFold, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the convex weights with the highest likelihood of labels (N,) under out-of-fold probabilities.

    The log-likelihood is concave in the weights of a mixture with fixed components. Small weights are removed.
    """
    tiny = np.finfo(np.float64).tiny
    label_probabilities = np.stack([np.where(labels == 1, p, 1 - p) for p in oof.values()], axis=1)  # (N, M)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        mixture = np.maximum(label_probabilities @ weights, tiny)
        gradient = -np.asarray((label_probabilities / mixture[:, None]).mean(axis=0))
        return -float(np.log(mixture).mean()), gradient

    result = minimize(
        loss,
        np.full(len(oof), 1 / len(oof)),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(oof),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-10},
    )
    return normalize_weights(dict(zip(oof, result.x.tolist(), strict=True)))


def normalize_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Remove weights below MIN_WEIGHT and scale the others to sum 1."""
    large = {name: weight for name, weight in weights.items() if weight >= MIN_WEIGHT}
    total = sum(large.values())
    return {name: weight / total for name, weight in large.items()}


def blend(oof: OutOfFold, weights: Mapping[str, float]) -> FloatArray:
    """Return the weighted mean (N,) of the members' probabilities."""
    return np.asarray(np.clip(np.sum([weight * oof[name] for name, weight in weights.items()], axis=0), 0.0, 1.0))


def blend_out_of_fold(oof: OutOfFold, rows: CalibrationSet, *, folds: int, seed: int) -> FloatArray:
    """Return the ensemble's probabilities (N,), with weights fitted on the other folds."""
    fold_of_row = assign_folds(rows.groups, folds=folds, seed=seed)
    blended = np.empty(len(rows.labels))
    for fold in range(folds):
        held_out = fold_of_row == fold
        weights = ensemble_weights({name: p[~held_out] for name, p in oof.items()}, rows.labels[~held_out])
        blended[held_out] = blend({name: p[held_out] for name, p in oof.items()}, weights)
    return blended

"""Out-of-fold probabilities of several calibrators, and convex combinations of them.

Legend: N rows, M members.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from streetvision.calibration.base import FittedCalibrator
from streetvision.calibration.calibrators import CALIBRATORS, Ensemble, make_calibrator
from streetvision.calibration.config import ENSEMBLE
from streetvision.calibration.crossfit import CalibrationSet, assign_folds, crossfit
from streetvision.eval.counts import FloatArray

LEAST_WEIGHT = 1e-3
"""A member that would count for less is left out of the ensemble."""

OutOfFold = dict[str, FloatArray]
"""Calibrator -> its cross-fitted probabilities (N,)."""


def out_of_fold(names: Iterable[str], rows: CalibrationSet, *, folds: int, seed: int) -> OutOfFold:
    """The cross-fitted probabilities (N,) of each calibrator of CALIBRATORS that is named."""

    def one(name: str) -> FloatArray:
        kind = CALIBRATORS[name]
        return crossfit(lambda part: kind().fit(part.logits, part.labels), rows, folds=folds, seed=seed)

    return {name: one(name) for name in names}


def fit_named(name: str, rows: CalibrationSet, weights: Mapping[str, float]) -> FittedCalibrator:
    """A calibrator, or the ensemble of `weights`, fitted on all rows."""
    if name != ENSEMBLE:
        return make_calibrator(name).fit(rows.logits, rows.labels)
    members: dict[str, FittedCalibrator] = {m: make_calibrator(m).fit(rows.logits, rows.labels) for m in weights}
    return Ensemble(members, dict(weights))


def ensemble_weights(oof: OutOfFold, labels: NDArray[np.int64]) -> dict[str, float]:
    """The convex weights with the highest likelihood of the labels under out-of-fold probabilities, small ones dropped.

    The weights of a mixture whose parts are known: the likelihood is concave in them.
    """
    tiny = np.finfo(np.float64).tiny
    of_truth = np.stack([np.where(labels == 1, p, 1 - p) for p in oof.values()], axis=1)  # (N, M)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        blended = np.maximum(of_truth @ weights, tiny)
        return -float(np.log(blended).mean()), -np.asarray((of_truth / blended[:, None]).mean(axis=0))

    found = minimize(
        loss,
        np.full(len(oof), 1 / len(oof)),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(oof),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-10},
    )
    return convex(dict(zip(oof, found.x.tolist(), strict=True)))


def convex(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights without those too small to matter, summing to 1."""
    kept = {name: weight for name, weight in weights.items() if weight >= LEAST_WEIGHT}
    total = sum(kept.values())
    return {name: weight / total for name, weight in kept.items()}


def blend(oof: OutOfFold, weights: Mapping[str, float]) -> FloatArray:
    """The weighted mean (N,) of the members' probabilities."""
    return np.asarray(np.clip(np.sum([weight * oof[name] for name, weight in weights.items()], axis=0), 0.0, 1.0))


def blend_out_of_fold(oof: OutOfFold, rows: CalibrationSet, *, folds: int, seed: int) -> FloatArray:
    """Probabilities (N,) of the ensemble, its weights learned on the other folds' out-of-fold probabilities."""
    fold_of = assign_folds(rows.groups, folds=folds, seed=seed)
    blended = np.empty(len(rows.labels))
    for fold in range(folds):
        out = fold_of == fold
        weights = ensemble_weights({name: p[~out] for name, p in oof.items()}, rows.labels[~out])
        blended[out] = blend({name: p[out] for name, p in oof.items()}, weights)
    return blended

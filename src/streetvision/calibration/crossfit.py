"""Probabilities from calibrators that did not see the row, within one split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator
from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, FloatArray
from streetvision.eval.resampling import Predictions
from streetvision.eval.thresholds import decide, threshold_for_prevalence


@dataclass(frozen=True)
class CalibrationSet:
    """The scores of VAL_CALIB."""

    logits: NDArray[np.floating[Any]]
    """(N, 2)"""
    labels: NDArray[np.int64]
    """(N,)"""
    groups: Sequence[str | None]
    """(N,) rows of one group share a fold; None stands alone."""

    def subset(self, rows: BoolArray) -> "CalibrationSet":
        """The rows of a mask (N,)."""
        groups = [group for group, kept in zip(self.groups, rows.tolist(), strict=True) if kept]
        return CalibrationSet(self.logits[rows], self.labels[rows], groups)


Fitter = Callable[[CalibrationSet], FittedCalibrator]


def crossfit(fit: Fitter, rows: CalibrationSet, *, folds: int, seed: int) -> FloatArray:
    """Probabilities (N,) of class 1, each from what `fit` made of the other folds' rows.

    `fit` may be a calibrator or a whole procedure of choosing one. Raises DataError with fewer groups than folds.
    """
    probabilities = np.empty(len(rows.labels))
    for held_out in _held_out(rows, folds, seed):
        probabilities[held_out] = fit(rows.subset(~held_out)).probabilities(rows.logits[held_out])
    return probabilities


def crossfit_decisions(fit: Fitter, rows: CalibrationSet, *, folds: int, seed: int) -> Predictions:
    """The same, and what the best cut of the other folds' rows decides: 0.5 where they are of one class."""
    probabilities, decisions = np.empty(len(rows.labels)), np.empty(len(rows.labels), dtype=bool)
    for held_out in _held_out(rows, folds, seed):
        rest = rows.subset(~held_out)
        fitted = fit(rest)
        one_class = np.ptp(rest.labels) == 0
        threshold = 0.5 if one_class else threshold_for_prevalence(rest.labels, fitted.probabilities(rest.logits))
        probabilities[held_out] = fitted.probabilities(rows.logits[held_out])
        decisions[held_out] = decide(probabilities[held_out], threshold)
    return Predictions(probabilities, decisions)


def _held_out(rows: CalibrationSet, folds: int, seed: int) -> Iterator[BoolArray]:
    """The rows (N,) of each fold in turn."""
    fold_of = assign_folds(rows.groups, folds=folds, seed=seed)
    return (fold_of == fold for fold in range(folds))


def assign_folds(groups: Sequence[str | None], *, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold (N,) for each row: groups in a seeded order, each to the fold with the fewest rows.

    A row without a group is a group of its own.
    """
    keys = [group if group is not None else f"\0{i}" for i, group in enumerate(groups)]
    names, of_row, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(names) < folds:
        raise DataError(
            f"VAL_CALIB has {len(names)} groups, and {folds} folds are asked for",
            "set phase5.folds to fewer, or give VAL_CALIB a larger share: data.fractions",
        )
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, fold_of_group = np.zeros(folds, dtype=np.int64), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold_of_group[group] = fold = int(np.argmin(filled))
        filled[fold] += sizes[group]
    return fold_of_group[of_row]

"""Cross-fitting within one split: each row gets probabilities from calibrators that were fitted on other folds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator
from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, FloatArray
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import decide


@dataclass(frozen=True)
class CalibrationSet:
    """The scores of VAL_CALIB, N rows."""

    logits: NDArray[np.floating[Any]]
    """(N, 2)"""
    labels: NDArray[np.int64]
    """(N,)"""
    groups: Sequence[str | None]
    """(N,) group ids; None: the row is a group of its own."""

    def subset(self, mask: BoolArray) -> "CalibrationSet":
        """Return the rows where `mask` (N,) is true."""
        groups = [group for group, selected in zip(self.groups, mask.tolist(), strict=True) if selected]
        return CalibrationSet(self.logits[mask], self.labels[mask], groups)

    @property
    def n_groups(self) -> int:
        """Number of groups; a row without a group counts as one."""
        named = [group for group in self.groups if group is not None]
        return len(set(named)) + len(self.groups) - len(named)


Fitter = Callable[[CalibrationSet], FittedCalibrator]


def crossfit(fit: Fitter, rows: CalibrationSet, *, folds: int, seed: int) -> FloatArray:
    """Return cross-fitted probabilities of class 1, (N,).

    Args:
        fit: fits a calibrator, or runs a whole selection procedure, on the rows of the other folds.
        rows: N rows.
        folds: number of folds; whole groups are held out.
        seed: seed of the folds.

    Raises:
        DataError: there are fewer groups than folds.
    """
    probabilities = np.empty(len(rows.labels))
    fold_of_row = assign_folds(rows.groups, folds=folds, seed=seed)
    for fold in range(folds):
        held_out = fold_of_row == fold
        probabilities[held_out] = fit(rows.subset(~held_out)).probabilities(rows.logits[held_out])
    return probabilities


def crossfit_decisions(
    fit: Fitter, rows: CalibrationSet, *, folds: int, seed: int, prevalence: float | None = None
) -> Predictions:
    """Return cross-fitted probabilities, and decisions at `bagged_threshold` of the other folds.

    The other arguments and errors are those of `crossfit`.

    Args:
        fit: Fits and applies a calibrator; see `crossfit`.
        rows: Rows to score; see `crossfit`.
        folds: Number of folds; see `crossfit`.
        seed: Seed of the folds; see `crossfit`.
        prevalence: Share of positives for which the thresholds are optimal; None: that of the other folds.
    """
    probabilities, decisions = np.empty(len(rows.labels)), np.empty(len(rows.labels), dtype=bool)
    fold_of_row = assign_folds(rows.groups, folds=folds, seed=seed)
    for fold in range(folds):
        held_out = fold_of_row == fold
        training = rows.subset(~held_out)
        calibrator = fit(training)
        threshold = 0.5  # with one class, or no row, none is better than another
        if len(np.unique(training.labels)) > 1:
            scores = Predictions(training.labels, calibrator.probabilities(training.logits), training.groups)
            threshold = bagged_threshold(scores, prevalence, seed=seed)
        probabilities[held_out] = calibrator.probabilities(rows.logits[held_out])
        decisions[held_out] = decide(probabilities[held_out], threshold)
    return Predictions(rows.labels, probabilities, rows.groups, decisions=decisions)


def assign_folds(groups: Sequence[str | None], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row (N,), balanced by rows, with whole groups in one fold.

    scikit-learn's GroupKFold is either balanced or shuffled, not both, and a stratified split would change the folds.

    Args:
        groups: (N,) group ids; None: the row is a group of its own.
        folds: number of folds.
        seed: seed of the order of groups of equal size.

    Raises:
        DataError: there are fewer groups than folds.
    """
    keys = [group if group is not None else f"\0{i}" for i, group in enumerate(groups)]
    names, group_of_row, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(names) < folds:
        possible = "leave out phase5.folds" if len(names) < 2 else f"set phase5.folds to at most {len(names)}"
        raise DataError(
            f"VAL_CALIB has {len(names)} group{'' if len(names) == 1 else 's'}, but phase5.folds is {folds}",
            f"{possible}, or increase the share of VAL_CALIB in data.fractions",
        )
    # Largest groups first, each to the fold with the fewest rows so far.
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows_in_fold, fold_of_group = np.zeros(folds, dtype=np.int64), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold_of_group[group] = fold = int(np.argmin(rows_in_fold))
        rows_in_fold[fold] += sizes[group]
    return fold_of_group[group_of_row]

"""Figures of a calibrator on rows that it was not fitted on, within one split."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.calibrators import make_calibrator
from streetvision.contracts.errors import DataError

FloatArray = NDArray[np.float64]


def crossfit_probabilities(
    method: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    groups: Sequence[str | None],
    folds: int,
    seed: int,
) -> FloatArray:
    """Probabilities (N,) of class 1, each from a calibrator fitted on the other folds' rows.

    Logits are (N, 2), labels (N,); rows of one group share a fold. Raises DataError with fewer groups than folds.
    """
    fold_of = assign_folds(groups, folds=folds, seed=seed)
    probabilities = np.empty(len(labels))
    for fold in range(folds):
        held_out = fold_of == fold
        calibrator = make_calibrator(method).fit(logits[~held_out], labels[~held_out])
        probabilities[held_out] = calibrator.probabilities(logits[held_out])
    return probabilities


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

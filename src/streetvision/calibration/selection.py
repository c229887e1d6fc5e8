"""Selection of the calibrator by cross-fitted likelihood, in tiers, with guards on MCC and calibration error.

NLL is a proper score; ECE is not. Selection by cross-validated ECE gives a higher NLL, and mostly a higher ECE as well
(docs/concepts/calibration.md). ECE and MCC therefore serve as guards only.

References:
    Ferrer and Ramos 2024, arXiv 2408.02841, on proper scores for the evaluation of posterior probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator
from streetvision.calibration.config import AUTO, ENSEMBLE, MAC_CAL, MULTI_OBJECTIVE, UNCALIBRATED, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet, assign_folds
from streetvision.calibration.ensemble import (
    blend,
    blend_out_of_fold,
    ensemble_weights,
    fit_named,
    normalize_weights,
    out_of_fold,
)
from streetvision.calibration.pareto import (
    Candidate,
    FrontPoint,
    best_mcc_and_fnr,
    mark_selected,
    pareto_front,
    select_preferred_point,
)
from streetvision.contracts.policies import CandidateMetrics
from streetvision.eval.calibration_error import brier_parts, ece_debiased, ece_equal_mass, smooth_ece
from streetvision.eval.counts import FloatArray
from streetvision.eval.metrics import brier, ece, nll
from streetvision.eval.predictions import Predictions

TIER_1 = ("isotonic", "temperature")
TIER_2 = ("platt", "beta", "spline")
TIERED = (UNCALIBRATED, *TIER_1, *TIER_2)
"""Calibrators that `auto`, `ensemble` and `multi_objective` use; the others are available by name only."""
RANDOM_ENSEMBLES = 200
"""Number of random ensembles that multi_objective evaluates."""


@dataclass(frozen=True)
class Selection:
    """The selected calibrator and the candidates."""

    name: str
    """A name in CALIBRATORS, or `ensemble`."""
    calibrator: FittedCalibrator
    """Fitted on all rows."""
    weights: Mapping[str, float]
    """Weights of the members of an ensemble; empty for other calibrators."""
    candidates: tuple[CandidateMetrics, ...]
    """Metrics of all candidates, the uncalibrated scores first."""
    front: tuple[FrontPoint, ...] = ()
    """All points of multi_objective; empty for other methods."""


def select_calibrator(rows: CalibrationSet, config: Phase5Config) -> Selection:
    """Return the calibrator that `config.method` selects, fitted on all rows.

    Nothing is selected on one group: the scores stay uncalibrated, unless the method is the name of a calibrator.
    """
    if rows.n_groups > 1:
        return SELECTORS.get(config.method, select_by_name)(rows, config)
    name = UNCALIBRATED if config.method in SELECTORS else config.method
    uncalibrated = fit_named(UNCALIBRATED, rows, {}).probabilities(rows.logits)
    candidate = evaluate_candidate(UNCALIBRATED, rows.labels, uncalibrated, np.zeros(len(rows.labels), dtype=np.int64))
    return Selection(name, fit_named(name, rows, {}), {}, (candidate,))


def select_tiered(rows: CalibrationSet, config: Phase5Config) -> Selection:
    """Select in tiers: tier 1, tier 2 if the ECE of tier 1 is above its limit, and the ensemble of all of them."""
    split = {"folds": config.folds, "seed": config.seed}
    fold_of_row = assign_folds(rows.groups, **split)
    oof = out_of_fold([UNCALIBRATED, *TIER_1], rows, **split)
    candidates = [evaluate_candidate(name, rows.labels, p, fold_of_row) for name, p in oof.items()]
    if _best(candidates, config).ece > config.ece_limit:
        tier_2 = out_of_fold(TIER_2, rows, **split)
        oof |= tier_2
        candidates += [evaluate_candidate(name, rows.labels, p, fold_of_row) for name, p in tier_2.items()]
    ensemble = evaluate_candidate(ENSEMBLE, rows.labels, blend_out_of_fold(oof, rows, **split), fold_of_row)
    uncalibrated, *others = candidates
    ensemble = apply_guards(ensemble, uncalibrated, config)
    candidates = [uncalibrated, *(apply_guards(other, uncalibrated, config) for other in others), ensemble]
    # Every member is a special case of the ensemble, so a lower NLL of one member is mostly noise.
    prefer_ensemble = config.selection == "nll" and ensemble.rejected is None and ensemble.nll < uncalibrated.nll
    name = ensemble.name if prefer_ensemble else _best(candidates, config).name
    weights = ensemble_weights(oof, rows.labels) if name == ENSEMBLE else {}
    return Selection(name, fit_named(name, rows, weights), weights, tuple(candidates))


def select_ensemble(rows: CalibrationSet, config: Phase5Config) -> Selection:
    """Return the ensemble of all tiered calibrators, without guards."""
    split = {"folds": config.folds, "seed": config.seed}
    fold_of_row = assign_folds(rows.groups, **split)
    oof = out_of_fold(TIERED, rows, **split)
    weights = ensemble_weights(oof, rows.labels)
    candidates = (
        evaluate_candidate(UNCALIBRATED, rows.labels, oof[UNCALIBRATED], fold_of_row),
        evaluate_candidate(ENSEMBLE, rows.labels, blend_out_of_fold(oof, rows, **split), fold_of_row),
    )
    return Selection(ENSEMBLE, fit_named(ENSEMBLE, rows, weights), weights, candidates)


def select_multi_objective(rows: CalibrationSet, config: Phase5Config) -> Selection:
    """Select from the Pareto front of NLL, ECE, 1 - MCC and FNR by the configured preference.

    The candidates are the tiered calibrators, and ensembles of them with random sparse weights.
    """
    fold_of_row = assign_folds(rows.groups, folds=config.folds, seed=config.seed)
    oof = out_of_fold(TIERED, rows, folds=config.folds, seed=config.seed)
    # A Dirichlet concentration below 1 gives sparse weights.
    random_weights = np.random.default_rng(config.seed).dirichlet(np.full(len(oof), 0.5), size=RANDOM_ENSEMBLES)
    mixtures = [{name: 1.0} for name in oof]
    mixtures += [normalize_weights(dict(zip(oof, row, strict=True))) for row in random_weights.tolist()]
    points = pareto_front([Candidate(weights, blend(oof, weights)) for weights in mixtures], rows.labels, fold_of_row)
    weights = dict(select_preferred_point(points, config.preference).weights)
    candidates = (
        evaluate_candidate(UNCALIBRATED, rows.labels, oof[UNCALIBRATED], fold_of_row),
        evaluate_candidate(ENSEMBLE, rows.labels, blend(oof, weights), fold_of_row),
    )
    return Selection(ENSEMBLE, fit_named(ENSEMBLE, rows, weights), weights, candidates, mark_selected(points, weights))


def select_by_name(rows: CalibrationSet, config: Phase5Config) -> Selection:
    """Return the calibrator named `config.method`, without guards."""
    names = dict.fromkeys([UNCALIBRATED, config.method])
    oof = out_of_fold(names, rows, folds=config.folds, seed=config.seed)
    fold_of_row = assign_folds(rows.groups, folds=config.folds, seed=config.seed)
    candidates = tuple(evaluate_candidate(name, rows.labels, p, fold_of_row) for name, p in oof.items())
    return Selection(config.method, fit_named(config.method, rows, {}), {}, candidates)


def select_retrained(rows: CalibrationSet, base: CalibrationSet, config: Phase5Config) -> Selection:
    """Return the scores of a head that was retrained for calibration, without a further calibrator.

    Args:
        rows: the scores of the retrained head.
        base: the scores of the original head for the same images; the tiered candidates are evaluated on them.
        config: settings of phase 5.
    """
    candidates = select_calibrator(base, config.model_copy(update={"method": AUTO})).candidates
    uncalibrated = fit_named(UNCALIBRATED, rows, {})
    fold_of_row = assign_folds(rows.groups, folds=config.folds, seed=config.seed)
    retrained = evaluate_candidate(MAC_CAL, rows.labels, uncalibrated.probabilities(rows.logits), fold_of_row)
    return Selection(UNCALIBRATED, uncalibrated, {}, (*candidates, retrained))


SELECTORS: Mapping[str, Callable[[CalibrationSet, Phase5Config], Selection]] = {
    AUTO: select_tiered,
    ENSEMBLE: select_ensemble,
    MULTI_OBJECTIVE: select_multi_objective,
}
"""Method -> its selector; every other method is the name of a calibrator."""


def evaluate_candidate(
    name: str, labels: NDArray[np.int64], probabilities: FloatArray, fold_of_row: NDArray[np.int64]
) -> CandidateMetrics:
    """Return the metrics of out-of-fold probabilities (N,); MCC and FNR at the best threshold of each fold."""
    predictions = Predictions(labels, probabilities)
    parts = brier_parts(predictions)
    best_mcc, fnr_there = best_mcc_and_fnr(labels, probabilities, fold_of_row)
    return CandidateMetrics(
        name=name,
        nll=nll(labels, probabilities),
        brier=brier(labels, probabilities),
        brier_miscalibration=parts.miscalibration,
        brier_discrimination=parts.discrimination,
        ece=ece(labels, probabilities),
        ece_equal_mass=ece_equal_mass(predictions),
        ece_debiased=ece_debiased(predictions),
        smooth_ece=smooth_ece(predictions),
        mcc=best_mcc,
        fnr=fnr_there,
    )


def apply_guards(candidate: CandidateMetrics, uncalibrated: CandidateMetrics, config: Phase5Config) -> CandidateMetrics:
    """Return the candidate, rejected if its MCC falls by more than `mcc_guard` or its debiased ECE rises."""
    reason = None
    if candidate.mcc < uncalibrated.mcc - config.mcc_guard:
        reason = f"MCC falls from {uncalibrated.mcc:.3f} to {candidate.mcc:.3f}"
    elif candidate.ece_debiased > uncalibrated.ece_debiased:
        reason = f"debiased ECE rises from {uncalibrated.ece_debiased:.3f} to {candidate.ece_debiased:.3f}"
    return candidate.model_copy(update={"rejected": reason})


def _best(candidates: Sequence[CandidateMetrics], config: Phase5Config) -> CandidateMetrics:
    """Return the candidate with the lowest NLL or ECE that is not rejected; the first of equal ones."""
    accepted = [candidate for candidate in candidates if candidate.rejected is None]
    return min(accepted, key=lambda candidate: candidate.nll if config.selection == "nll" else candidate.ece)

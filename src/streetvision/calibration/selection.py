"""Which calibrator: everything judged out of fold, chosen by likelihood under guards, in tiers.

By likelihood and not by ECE: a choice by cross-validated ECE gave worse likelihood in all of twelve simulated settings,
and worse ECE in most of them. Ferrer and Ramos 2024, arXiv 2408.02841, argue for proper scores; ECE and MCC are guards.

Legend: N rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator
from streetvision.calibration.config import AUTO, ENSEMBLE, MAC_CAL, MULTI_OBJECTIVE, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.ensemble import (
    blend,
    blend_out_of_fold,
    convex,
    ensemble_weights,
    fit_named,
    out_of_fold,
)
from streetvision.calibration.pareto import FrontPoint, mark_selected, pareto_front, select_preferred_point
from streetvision.contracts.policies import CandidateMetrics
from streetvision.eval.calibration_error import brier_parts, ece_debiased, ece_equal_mass, smooth_ece
from streetvision.eval.counts import FloatArray, all_cuts
from streetvision.eval.metrics import brier, ece, fnr, mcc, nll

UNCALIBRATED = "none"
TIER_1 = ("isotonic", "temperature")
TIER_2 = ("platt", "beta", "spline")
TIERS = {UNCALIBRATED: 0, **dict.fromkeys(TIER_1, 1), **dict.fromkeys(TIER_2, 2)}
"""Calibrator -> the tier that tries it; any other is taken only by name."""
WEIGHTS_TRIED = 200
"""Ensembles that multi_objective draws."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it was chosen from."""

    name: str
    calibrator: FittedCalibrator
    """FittedCalibrator on all rows."""
    weights: Mapping[str, float]
    """Of the members, when an ensemble was chosen; else empty."""
    table: tuple[CandidateMetrics, ...]
    """Every candidate, the uncalibrated scores first."""
    front: tuple[FrontPoint, ...] = ()
    """Every point that multi_objective weighed; empty for other methods."""


def select_retrained(rows: CalibrationSet, base: CalibrationSet, config: Phase5Config) -> Choice:
    """The scores of a head that was retrained for calibration, as they are, beside what the tiers make of the old ones.

    `rows` are the new scores and `base` the old ones, of the same images. Nothing is fitted on either but the table.
    """
    table = select_tiered(base, config).table
    as_is = fit_named(UNCALIBRATED, rows, {})
    retrained = evaluate_candidate(MAC_CAL, rows.labels, as_is.probabilities(rows.logits))
    return Choice(UNCALIBRATED, as_is, {}, (*table, retrained))


def select_calibrator(rows: CalibrationSet, config: Phase5Config) -> Choice:
    """The calibrator that `config.method` leads to, fitted on all rows."""
    return SELECTORS.get(config.method, select_as_named)(rows, config)


def select_tiered(rows: CalibrationSet, config: Phase5Config) -> Choice:
    """Tier 1 always, tier 2 when tier 1 leaves ECE above its limit, tier 3 the ensemble of what was tried."""
    split = {"folds": config.folds, "seed": config.seed}
    oof = out_of_fold([UNCALIBRATED, *TIER_1], rows, **split)
    table = [evaluate_candidate(name, rows.labels, p) for name, p in oof.items()]
    if _lowest(table, config).ece > config.ece_limit:
        more = out_of_fold(TIER_2, rows, **split)
        oof |= more
        table += [evaluate_candidate(name, rows.labels, p) for name, p in more.items()]
    table.append(evaluate_candidate(ENSEMBLE, rows.labels, blend_out_of_fold(oof, rows, **split)))
    table = [table[0], *(apply_guards(candidate, table[0], config) for candidate in table[1:])]
    name = _pick(table, config)
    weights = ensemble_weights(oof, rows.labels) if name == ENSEMBLE else {}
    return Choice(name, fit_named(name, rows, weights), weights, tuple(table))


def select_ensemble(rows: CalibrationSet, config: Phase5Config) -> Choice:
    """The ensemble of every calibrator of the tiers, without guards."""
    oof = out_of_fold(TIERS, rows, folds=config.folds, seed=config.seed)
    blended = blend_out_of_fold(oof, rows, folds=config.folds, seed=config.seed)
    weights = ensemble_weights(oof, rows.labels)
    table = (
        evaluate_candidate(UNCALIBRATED, rows.labels, oof[UNCALIBRATED]),
        evaluate_candidate(ENSEMBLE, rows.labels, blended),
    )
    return Choice(ENSEMBLE, fit_named(ENSEMBLE, rows, weights), weights, table)


def select_preferred(rows: CalibrationSet, config: Phase5Config) -> Choice:
    """The point of the Pareto front of (NLL, ECE, 1 - MCC, FNR) that the configured preference picks.

    Candidates are the calibrators of the tiers and ensembles of them with weights drawn evenly over sparse mixtures.
    """
    oof = out_of_fold(TIERS, rows, folds=config.folds, seed=config.seed)
    drawn = np.random.default_rng(config.seed).dirichlet(np.full(len(oof), 0.5), size=WEIGHTS_TRIED)
    mixtures = [{name: 1.0} for name in oof] + [convex(dict(zip(oof, row, strict=True))) for row in drawn.tolist()]
    points = pareto_front([(weights, rows.labels, blend(oof, weights)) for weights in mixtures])
    weights = dict(select_preferred_point(points, config.preference).weights)
    table = (
        evaluate_candidate(UNCALIBRATED, rows.labels, oof[UNCALIBRATED]),
        evaluate_candidate(ENSEMBLE, rows.labels, blend(oof, weights)),
    )
    return Choice(ENSEMBLE, fit_named(ENSEMBLE, rows, weights), weights, table, mark_selected(points, weights))


def select_as_named(rows: CalibrationSet, config: Phase5Config) -> Choice:
    """One calibrator beside the uncalibrated scores, without guards."""
    names = dict.fromkeys([UNCALIBRATED, config.method])
    oof = out_of_fold(names, rows, folds=config.folds, seed=config.seed)
    table = tuple(evaluate_candidate(name, rows.labels, p) for name, p in oof.items())
    return Choice(config.method, fit_named(config.method, rows, {}), {}, table)


SELECTORS: Mapping[str, Callable[[CalibrationSet, Phase5Config], Choice]] = {
    AUTO: select_tiered,
    ENSEMBLE: select_ensemble,
    MULTI_OBJECTIVE: select_preferred,
}
"""Method -> how it comes to a calibrator; every other method is the name of one."""


def evaluate_candidate(name: str, labels: NDArray[np.int64], probabilities: FloatArray) -> CandidateMetrics:
    """Every figure of one candidate from its out-of-fold probabilities (N,); MCC and FNR at its own best cut."""
    counts = all_cuts(labels, probabilities).counts()
    at_cuts = np.asarray(mcc(counts))
    peak = int(np.argmax(at_cuts))
    parts = brier_parts(labels, probabilities)
    return CandidateMetrics(
        name=name,
        nll=nll(labels, probabilities),
        brier=brier(labels, probabilities),
        brier_miscalibration=parts.miscalibration,
        brier_discrimination=parts.discrimination,
        ece=ece(labels, probabilities),
        ece_equal_mass=ece_equal_mass(labels, probabilities),
        ece_debiased=ece_debiased(labels, probabilities),
        smooth_ece=smooth_ece(labels, probabilities),
        mcc=float(at_cuts[peak]),
        fnr=float(np.asarray(fnr(counts))[peak]),
    )


def apply_guards(candidate: CandidateMetrics, before: CandidateMetrics, config: Phase5Config) -> CandidateMetrics:
    """The candidate, rejected where it costs MCC or raises the calibration error that is not chance."""
    reason = None
    if candidate.mcc < before.mcc - config.mcc_guard:
        reason = f"MCC falls from {before.mcc:.3f} to {candidate.mcc:.3f}"
    elif candidate.ece_debiased > before.ece_debiased:
        reason = f"debiased ECE rises from {before.ece_debiased:.3f} to {candidate.ece_debiased:.3f}"
    return candidate.model_copy(update={"rejected": reason})


def _lowest(table: Sequence[CandidateMetrics], config: Phase5Config) -> CandidateMetrics:
    """The lowest NLL or ECE among those not rejected; the earlier of equals."""
    allowed = [candidate for candidate in table if candidate.rejected is None]
    return min(allowed, key=lambda candidate: candidate.nll if config.selection == "nll" else candidate.ece)


def _pick(table: Sequence[CandidateMetrics], config: Phase5Config) -> str:
    """By NLL the ensemble, where it is allowed and better than no calibration; else the lowest of the table.

    Every member is a corner of the ensemble, so a lower NLL of one of them is mostly noise: in simulation, taking the
    lowest of all left nearly four times the best method's excess likelihood, the ensemble less than three times.
    """
    before, ensemble = table[0], table[-1]
    if config.selection == "nll" and ensemble.rejected is None and ensemble.nll < before.nll:
        return ENSEMBLE
    return _lowest(table, config).name

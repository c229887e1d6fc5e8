"""Phase 5's fit on VAL_CALIB: calibrator, operating points and risk control."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streetvision.calibration.base import FittedCalibrator, margins
from streetvision.calibration.config import ENSEMBLE, UNCALIBRATED, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet, crossfit_decisions
from streetvision.calibration.ensemble import fit_named
from streetvision.calibration.risk_control import RISK_NAMES, ScoredRows, abstained, certify
from streetvision.calibration.selection import SELECTORS, Selection, select_calibrator, select_retrained
from streetvision.contracts.policies import (
    CalibratorState,
    EstimateWithInterval,
    OperatingPoint,
    RiskControl,
    ScrcParams,
)
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import FloatArray, confusion_counts
from streetvision.eval.cross_validated import cross_validated_intervals
from streetvision.eval.intervals import Interval
from streetvision.eval.metrics import count_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import ece_band
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import decide

REPORTED_METRICS = ("nll", "brier", "ece", "mcc")
"""Metrics before and after calibration; MCC at thresholds that were selected on the other folds."""
BALANCED_PREVALENCE = 0.5


@dataclass(frozen=True)
class ScrcFit:
    """The exported parameters, and the cross-fitted probabilities that evaluate them."""

    params: ScrcParams
    selection: Selection
    before: FloatArray
    """(N,) uncalibrated probabilities."""
    after: FloatArray
    """(N,) cross-fitted probabilities of the whole procedure, selection included."""
    predictions: Predictions
    """The same with decisions at cross-fitted thresholds."""
    intervals: Mapping[str, Interval]
    """Every metric of `predictions` with its interval."""
    level: float
    """Confidence level of the intervals."""


def fit_scrc(
    rows: CalibrationSet, config: Phase5Config, *, base: CalibrationSet | None = None, fold_models: int | None = None
) -> ScrcFit:
    """Fit the exported parameters on all rows, and cross-fit the same procedure to evaluate it.

    Args:
        rows: the scores to calibrate.
        config: settings of phase 5.
        base: for mac_cal, the scores before the head was retrained; then `rows` are not calibrated further.
        fold_models: the number of models of cross_fit that made the scores. It set no rows aside, so no risk is
            certified, and the intervals are those of a cross-validation. None: the rows were set aside.

    Raises:
        DataError: there is one class only, there are fewer groups than folds, or logits are not finite.
    """
    selection = select_calibrator(rows, config) if base is None else select_retrained(rows, base, config)
    probabilities = selection.calibrator.probabilities(rows.logits)
    operating_points = {
        "data": _operating_point(rows, probabilities, None, config.seed),
        "balanced": _operating_point(rows, probabilities, BALANCED_PREVALENCE, config.seed),
    }
    uncalibrated = fit_named(UNCALIBRATED, rows, {})

    def fit_fold(part: CalibrationSet) -> FittedCalibrator:
        if base is not None or part.n_groups == 0:
            return uncalibrated
        if config.method not in SELECTORS:
            return fit_named(config.method, part, {})
        folds = min(config.folds, part.n_groups)
        return select_calibrator(part, config.model_copy(update={"folds": folds})).calibrator

    folds, seed, resampling = config.folds, config.seed, Resampling(seed=config.seed)

    def intervals(predictions: Predictions) -> dict[str, Interval]:
        if fold_models is None:
            return bootstrap_intervals(predictions, resampling)
        return cross_validated_intervals([predictions], resampling, folds=fold_models)

    before = crossfit_decisions(lambda _: uncalibrated, base or rows, folds=folds, seed=seed)
    after = crossfit_decisions(fit_fold, rows, folds=folds, seed=seed)
    intervals_before, intervals_after = intervals(before), intervals(after)
    if fold_models is not None:
        balanced = crossfit_decisions(fit_fold, rows, folds=folds, seed=seed, prevalence=BALANCED_PREVALENCE)
        intervals_by_point = {"data": intervals_after, "balanced": intervals(balanced)}
        risk_control = _out_of_fold_risk(intervals_by_point, after, config)
    else:
        risk_control = _risk_control(rows, selection.calibrator, config)
    params = ScrcParams(
        method=config.method,
        calibrator=CalibratorState(name=selection.name, state=selection.calibrator.state()),
        ensemble_weights=dict(selection.weights) if selection.name == ENSEMBLE else {},
        threshold=operating_points["data"].threshold,
        operating_points=operating_points,
        risk_control=risk_control,
        candidates=selection.candidates,
        before=_reported(intervals_before),
        after=_reported(intervals_after),
        ece_band=ece_band(after, resampling),
    )
    return ScrcFit(
        params, selection, before.probabilities, after.probabilities, after, intervals_after, resampling.level
    )


def _operating_point(
    rows: CalibrationSet, probabilities: FloatArray, prevalence: float | None, seed: int
) -> OperatingPoint:
    threshold = bagged_threshold(Predictions(rows.labels, probabilities, rows.groups), prevalence, seed=seed)
    counts = confusion_counts(rows.labels, decide(probabilities, threshold))
    return OperatingPoint(threshold=threshold, metrics=count_metrics(counts))


def _risk_control(rows: CalibrationSet, calibrator: FittedCalibrator, config: Phase5Config) -> RiskControl:
    margin, risk = margins(rows.logits), config.risk
    certificate = certify(ScoredRows(margin, rows.labels == 1, rows.groups), risk, seed=config.seed)
    named_groups = [group for group in rows.groups if group is not None]
    content: dict[str, object] = {
        "kind": risk.kind,
        "alpha": risk.alpha,
        "delta": risk.delta,
        "certified": False,
        "reason": certificate.reason,
        "n": certificate.n,
        "units": "groups" if len(set(named_groups)) < len(named_groups) else "rows",
    }
    if certificate.lo is not None and certificate.hi is not None:
        bounds = np.array([[0.0, certificate.lo], [0.0, certificate.hi]])  # logits with these margins
        lo_probability, hi_probability = calibrator.probabilities(bounds).tolist()
        content |= {
            "certified": True,
            "lo": certificate.lo,
            "hi": certificate.hi,
            "lo_probability": lo_probability,
            "hi_probability": hi_probability,
            "abstained": float(abstained(margin, certificate.lo, certificate.hi).mean()),
        }
    return RiskControl.model_validate(content)


def _out_of_fold_risk(
    intervals: Mapping[str, Mapping[str, Interval]], data: Predictions, config: Phase5Config
) -> RiskControl:
    """The risk at each operating point, estimated on rows that nothing was fitted on."""
    kind = config.risk.kind
    estimates = {point: _risk_estimates(of_point) for point, of_point in intervals.items()}
    # One of the two rates alone does not show that a model predicts one class.
    shown = [kind] if kind == "error" else [kind, "fpr" if kind == "fnr" else "fnr"]
    figures = ", ".join(f"{RISK_NAMES[name]} {_with_interval(estimates['data'][name])}" for name in shown)
    return RiskControl(
        kind=kind,
        alpha=config.risk.alpha,
        delta=config.risk.delta,
        certified=False,
        reason=f"no certificate under data.protocol=cross_fit; out-of-fold {figures}",
        n=data.units.count,
        units="groups" if data.units.grouped else "rows",
        out_of_fold={name: of_point[kind] for name, of_point in estimates.items()},
    )


def _risk_estimates(intervals: Mapping[str, Interval]) -> dict[str, EstimateWithInterval]:
    """Kind of risk -> its estimate with its interval."""
    estimates = estimates_with_intervals(intervals)
    accuracy = estimates["accuracy"]
    ends = (accuracy.estimate, accuracy.high, accuracy.low)
    estimate, low, high = (None if end is None else 1 - end for end in ends)
    error = EstimateWithInterval(estimate=estimate, low=low, high=high)
    return {"fnr": estimates["fnr"], "fpr": estimates["fpr"], "error": error}


def _with_interval(risk: EstimateWithInterval) -> str:
    return "is undefined" if risk.estimate is None else f"{risk.estimate:.3f} [{risk.low:.3f}, {risk.high:.3f}]"


def estimates_with_intervals(intervals: Mapping[str, Interval]) -> dict[str, EstimateWithInterval]:
    """Return intervals as they are stored: None where they are undefined."""
    estimates = {}
    for name, interval in intervals.items():
        values = {field: getattr(interval, field) for field in ("estimate", "low", "high")}
        estimates[name] = EstimateWithInterval.model_validate(
            {field: None if math.isnan(value) else value for field, value in values.items()}
        )
    return estimates


def _reported(intervals: Mapping[str, Interval]) -> dict[str, EstimateWithInterval]:
    estimates = estimates_with_intervals(intervals)
    return {name: estimates[name] for name in REPORTED_METRICS}

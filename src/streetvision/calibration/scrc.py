"""All that phase 5 learns from the scores of VAL_CALIB, put together: calibrator, operating points, risk control."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator, margins
from streetvision.calibration.config import ENSEMBLE, Phase5Config
from streetvision.calibration.crossfit import CalibrationSet, crossfit_decisions
from streetvision.calibration.ensemble import fit_named
from streetvision.calibration.risk_control import ScoredRows, abstained, certify
from streetvision.calibration.selection import UNCALIBRATED, Choice, select_calibrator, select_retrained
from streetvision.contracts.policies import (
    CalibratorState,
    EstimateWithInterval,
    OperatingPoint,
    RiskControl,
    ScrcParams,
)
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import FloatArray, confusion_counts
from streetvision.eval.metrics import count_metrics
from streetvision.eval.reliability import ece_band
from streetvision.eval.resampling import Predictions, Resampling
from streetvision.eval.thresholds import decide, threshold_for_prevalence

FIGURES = ("nll", "brier", "ece", "mcc")
"""What is told before and after calibration, MCC at cuts that were chosen on the other folds."""
BALANCED = 0.5


@dataclass(frozen=True)
class ScrcFit:
    """What ships, and the cross-fitted probabilities that it is judged by."""

    params: ScrcParams
    choice: Choice
    before: FloatArray
    """(N,) uncalibrated."""
    after: FloatArray
    """(N,) from the whole procedure, choice included, fitted on the other folds."""


def fit_scrc(rows: CalibrationSet, config: Phase5Config, *, base: CalibrationSet | None = None) -> ScrcFit:
    """Fit on all rows what ships; cross-fit the same procedure for what is said of it.

    `base` are the scores before the head was retrained, when `rows` come from mac_cal: there is nothing to cross-fit.

    Raises:
        DataError: one class only, fewer groups than folds, logits that are not finite.
    """
    choice = select_calibrator(rows, config) if base is None else select_retrained(rows, base, config)
    shipped = choice.calibrator.probabilities(rows.logits)
    points = {
        "data": _operating_point(rows.labels, shipped, None),
        "balanced": _operating_point(rows.labels, shipped, BALANCED),
    }
    raw = fit_named(UNCALIBRATED, rows, {})
    split = {"folds": config.folds, "seed": config.seed}
    before = crossfit_decisions(lambda _: raw, base or rows, **split)
    after = crossfit_decisions(
        lambda part: select_calibrator(part, config).calibrator if base is None else raw, rows, **split
    )
    how = Resampling(rows.groups, seed=config.seed)
    params = ScrcParams(
        method=config.method,
        calibrator=CalibratorState(name=choice.name, state=choice.calibrator.state()),
        ensemble_weights=dict(choice.weights) if choice.name == ENSEMBLE else {},
        threshold=points["data"].threshold,
        operating_points=points,
        risk_control=_control(rows, choice.calibrator, config),
        candidates=choice.table,
        before=_figures(rows.labels, before, how),
        after=_figures(rows.labels, after, how),
        ece_band=ece_band(after.probabilities, how),
    )
    return ScrcFit(params, choice, np.asarray(before.probabilities), np.asarray(after.probabilities))


def _operating_point(labels: NDArray[np.int64], probabilities: FloatArray, prevalence: float | None) -> OperatingPoint:
    threshold = threshold_for_prevalence(labels, probabilities, prevalence)
    counts = confusion_counts(labels, decide(probabilities, threshold))
    return OperatingPoint(threshold=threshold, metrics=count_metrics(counts))


def _control(rows: CalibrationSet, calibrator: FittedCalibrator, config: Phase5Config) -> RiskControl:
    margin, risk = margins(rows.logits), config.risk
    found = certify(ScoredRows(margin, rows.labels == 1, rows.groups), risk, seed=config.seed)
    said = {"kind": risk.kind, "alpha": risk.alpha, "delta": risk.delta, "reason": found.reason, "n": found.n}
    named = [group for group in rows.groups if group is not None]
    units = "groups" if len(set(named)) < len(named) else "rows"
    if found.lo is None or found.hi is None:
        return RiskControl.model_validate({**said, "units": units, "certified": False})
    ends = np.array([[0.0, found.lo], [0.0, found.hi]])
    lo_probability, hi_probability = calibrator.probabilities(ends).tolist()
    return RiskControl.model_validate(
        {
            **said,
            "units": units,
            "certified": True,
            "lo": found.lo,
            "hi": found.hi,
            "lo_probability": lo_probability,
            "hi_probability": hi_probability,
            "abstained": float(abstained(margin, found.lo, found.hi).mean()),
        }
    )


def _figures(labels: NDArray[np.int64], judged: Predictions, how: Resampling) -> dict[str, EstimateWithInterval]:
    intervals = bootstrap_intervals(labels, judged, how)
    ends = ("estimate", "low", "high")
    return {
        name: EstimateWithInterval.model_validate({end: _defined(getattr(intervals[name], end)) for end in ends})
        for name in FIGURES
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value

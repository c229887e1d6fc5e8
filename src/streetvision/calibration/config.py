"""Settings of phase 5. This module does not import SciPy, so that settings load quickly."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from streetvision.contracts.settings import Section, Seed, no_effect

AUTO: Literal["auto"] = "auto"
ENSEMBLE: Literal["ensemble"] = "ensemble"
MULTI_OBJECTIVE: Literal["multi_objective"] = "multi_objective"
MAC_CAL: Literal["mac_cal"] = "mac_cal"
UNCALIBRATED: Literal["none"] = "none"
CalibratorName = Literal["none", "temperature", "platt", "beta", "isotonic", "smooth_isotonic", "histogram", "spline"]
Method = Literal["auto", "ensemble", "multi_objective", "mac_cal", CalibratorName]
METHODS: tuple[Method, ...] = get_args(Method)


class PreferenceConfig(Section):
    """Weights by which multi_objective chooses from the Pareto front. Each objective is scaled to [0, 1] on it."""

    nll: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood."""
    ece: float = Field(default=1.0, ge=0)
    """Weight of the expected calibration error over 15 equal bins."""
    mcc_loss: float = Field(default=1.0, ge=0)
    """Weight of 1 - MCC at the best threshold of each fold."""
    fnr: float = Field(default=1.0, ge=0)
    """Weight of the false negative rate at these thresholds."""


class RiskConfig(Section):
    """When to abstain, so that the risk among the other predictions is bounded."""

    kind: Literal["fnr", "fpr", "error"] = "fnr"
    """fnr: false negatives among accepted positives; fpr: false positives among accepted negatives; error: wrong
    predictions among accepted images."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Largest risk, a share."""
    delta: float = Field(default=0.1, gt=0, lt=0.5)
    """Largest probability, over calibration sets, that the risk is above alpha; 1 - delta is the confidence."""


class Phase5Config(Section):
    """Calibration, operating points and risk control."""

    method: Method = AUTO
    """auto: the ensemble if it is better than the uncalibrated scores, else the best single calibrator or none;
    ensemble: always the ensemble; multi_objective: by phase5.preference; mac_cal: the scores of phase5_maccal, not
    calibrated further; another name: this calibrator. Of one group, nothing is selected: the scores stay uncalibrated,
    unless this names a calibrator."""
    selection: Literal["nll", "ece"] = "nll"
    """auto: the cross-fitted figure to minimize. ece is the rule of the specification; nll selects better."""
    ece_limit: float = Field(default=0.0, ge=0, le=1)
    """auto: tier 2 is tried if the best cross-fitted ECE of tier 1 is above this; 0: always."""
    mcc_guard: float = Field(default=0.02, ge=0, le=1)
    """auto: loss of MCC, at the best threshold of each fold, above which a method is rejected."""
    preference: PreferenceConfig = PreferenceConfig()
    """multi_objective: the weights of the objectives."""
    risk: RiskConfig = RiskConfig()
    """The risk to bound, and how surely."""
    folds: int = Field(default=5, ge=2)
    """Folds of VAL_CALIB for cross-fitting. A group is never divided between folds. If this is not set and there are
    fewer groups, there are as many folds as groups."""
    seed: Seed = 0
    """Seed of the folds, of the weights that multi_objective tries, and of the frame drawn from each track."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        needs = {"selection": AUTO, "ece_limit": AUTO, "mcc_guard": AUTO, "preference": MULTI_OBJECTIVE}
        for name, method in needs.items():
            if self.method != method and getattr(self, name) != type(self).model_fields[name].default:
                raise no_effect(f"phase5.{name}", f"phase5.method={self.method}", f"set phase5.method={method}")
        return self

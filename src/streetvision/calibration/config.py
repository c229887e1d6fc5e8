"""Settings of phase 5; apart from the code that they steer, because that code loads SciPy."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.settings import Seed

AUTO: Literal["auto"] = "auto"
ENSEMBLE: Literal["ensemble"] = "ensemble"
MULTI_OBJECTIVE: Literal["multi_objective"] = "multi_objective"
MAC_CAL: Literal["mac_cal"] = "mac_cal"
CalibratorName = Literal["none", "temperature", "platt", "beta", "isotonic", "smooth_isotonic", "histogram", "spline"]
Method = Literal["auto", "ensemble", "multi_objective", "mac_cal", CalibratorName]
METHODS: tuple[Method, ...] = get_args(Method)


class PreferenceConfig(BaseModel):
    """What counts how much on the Pareto front of multi_objective; each is scaled to [0, 1] over the front."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nll: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood."""
    ece: float = Field(default=1.0, ge=0)
    """Weight of the calibration error over 15 equal bins."""
    mcc_loss: float = Field(default=1.0, ge=0)
    """Weight of 1 - MCC at the best cut."""
    fnr: float = Field(default=1.0, ge=0)
    """Weight of the miss rate at that cut."""


class RiskConfig(BaseModel):
    """When to hand over to a person, so that the risk among what is answered is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fnr", "fpr", "error"] = "fnr"
    """fnr: share missed among answered positives; fpr: false alarms among answered negatives; error: wrong answers."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """The risk that is allowed, a share."""
    delta: float = Field(default=0.1, gt=0, lt=0.5)
    """Chance over calibration sets that the risk is above alpha all the same."""


class Phase5Config(BaseModel):
    """Calibration, the operating points and the control of risk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = AUTO
    """auto: chosen in tiers; ensemble, multi_objective or a name in CALIBRATORS: that, as it is; mac_cal: the scores of
    phase5_maccal as they are."""
    selection: Literal["nll", "ece"] = "nll"
    """Of auto: what the choice goes by, cross-fitted. ece is the specification's rule, and the worse one."""
    ece_limit: float = Field(default=0.0, ge=0, le=1)
    """Of auto: tier 2 is tried when the best of tier 1 has a cross-fitted ECE above this; 0 always tries it."""
    mcc_guard: float = Field(default=0.02, ge=0, le=1)
    """Of auto: a method is rejected when the best MCC of its probabilities is lower than before by more than this."""
    preference: PreferenceConfig = PreferenceConfig()
    """Of multi_objective."""
    risk: RiskConfig = RiskConfig()
    """What is promised of an answer, and how surely."""
    folds: int = Field(default=5, ge=2)
    """Parts of VAL_CALIB for cross-fitting; whole groups stay together."""
    seed: Seed = 0
    """Of the folds, of the weights tried by multi_objective and of the frame taken from each track."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        fields = type(self).model_fields
        readers = {"selection": AUTO, "ece_limit": AUTO, "mcc_guard": AUTO, "preference": MULTI_OBJECTIVE}
        for name, reader in readers.items():
            if self.method != reader and getattr(self, name) != fields[name].default:
                raise ConfigError(
                    f"phase5.{name} is not read by phase5.method={self.method}",
                    f"leave it out, or take phase5.method={reader}",
                )
        return self

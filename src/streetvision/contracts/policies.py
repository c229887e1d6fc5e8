"""Models of thresholds.json, scrc_params.json and bundle.json.

Every model rejects unknown fields and non-finite numbers. A policy stores the digests of the scores that it was fitted
on and of the model that produced them, so a mismatch between artifacts is detected.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["fp32", "bf16", "int8"]
"""Number format of an exported graph."""
_Points = TypeVar("_Points", bound=Mapping[str, object])


class Artifact(BaseModel):
    """Base of all models that are written to disk and read back."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gate(Artifact):
    """The decision on a stage: gate.json."""

    gate: Literal["on", "off", "only_report"]
    """The setting."""
    ships: bool
    """Whether the stage is a part of the model that ships."""
    better: bool | None = None
    """Whether the bound is below 0; None: not compared."""
    reason: str
    candidate_nll: float | None = None
    baseline_nll: float | None = None
    """Negative log-likelihood of the model with the stage, and of the model without it."""
    difference: float | None = None
    """NLL of the candidate minus that of the baseline; below 0, the candidate is better."""
    bound: float | None = None
    """One-sided upper confidence bound of the difference."""
    level: float | None = None
    """Confidence of the bound."""
    units: int = Field(default=0, ge=0)
    """Independent groups."""
    share: float | None = None
    """Share of the weights of the stage that ships; None for a stage that ships or does not."""
    details: dict[str, JsonValue] = {}
    """Further figures of the stage."""

    @property
    def metrics(self) -> dict[str, float | int | str | None]:
        """The decision for the manifest of the phase."""
        return {"gate": self.gate, "ships": int(self.ships), "nll_difference": self.difference, "nll_bound": self.bound}


class FusionRef(Artifact):
    """Identifies the fusion of views that produced scores."""

    description_sha256: Digest
    """Digest of the file that describes the views and the fusion."""
    weights_sha256: Digest | None = None
    """Digest of the trained fusion's checkpoint; None for an untrained fusion."""


class ScoresRef(Artifact):
    """Identifies the scores that a policy was fitted on."""

    sha256: Digest
    """Digest of the scores: model, fusion, rows, logits and labels."""
    model_sha256: Digest
    """Digest of the checkpoint that produced them; under cross_fit, of the model that ships."""
    fold_models: tuple[Digest, ...] = ()
    """Under cross_fit: digest of the model of each fold, which scored the rows of this fold. Empty under split."""
    fusion: FusionRef | None = None
    """The fusion of views; None: each image is one view."""
    split: str
    """The scored split."""
    n: int = Field(gt=0)
    """Number of rows."""
    positives: int = Field(ge=0)
    """Number of rows of class 1."""


class ThresholdInterval(Artifact):
    """Bootstrap interval of a threshold that is selected again on each resample."""

    low: Probability
    high: Probability
    level: float = Field(gt=0, lt=1)
    """Share of the resamples whose threshold is between low and high."""
    n_resamples: int = Field(ge=2)
    units: int = Field(gt=0)
    """Number of independent units that are resampled: groups, or rows without groups."""


class OperatingPoint(Artifact):
    """A threshold and its metrics."""

    threshold: Probability
    metrics: dict[str, float]
    """Metrics at the threshold, on the scores that it was fitted on."""


def _with_balanced(points: _Points) -> _Points:
    if points.get("balanced") is None:
        raise ValueError("operating_points must have a point 'balanced'")
    return points


class ThresholdPolicy(Artifact):
    """thresholds.json: a threshold on the softmax probability of class 1."""

    policy_type: Literal["threshold"] = "threshold"
    schema_version: Literal[2] = 2
    threshold: Probability
    """An image is class 1 when its probability is at least this value."""
    interval: ThresholdInterval
    metrics: dict[str, float | int | None]
    """Metrics at the threshold, on the scores that it was fitted on. None: undefined for these scores."""
    operating_points: Annotated[dict[str, OperatingPoint | None], AfterValidator(_with_balanced)]
    """balanced: highest MCC at prevalence 1/2. recall: lowest FPR at the target recall.

    fpr: lowest FNR at the target FPR; None if no threshold reaches the target."""
    scores: ScoresRef

    @property
    def balanced_threshold(self) -> float:
        """The threshold with the highest MCC at prevalence 1/2."""
        point = self.operating_points["balanced"]
        assert point is not None, "validated"
        return point.threshold


class CalibratorState(Artifact):
    """A fitted calibrator as JSON."""

    name: str
    """Its name in CALIBRATORS."""
    state: dict[str, JsonValue]
    """The value of its `state()`."""


class CandidateMetrics(Artifact):
    """Metrics of one calibrator on its cross-fitted probabilities of VAL_CALIB."""

    name: str
    """A name in CALIBRATORS, `ensemble` or `mac_cal`."""
    nll: float
    brier: float
    brier_miscalibration: float
    """Part of the Brier score that isotonic recalibration of these rows removes."""
    brier_discrimination: float
    """Improvement of the Brier score over the base rate, after isotonic recalibration."""
    ece: float
    """Over 15 bins of equal width; the primary calibration error."""
    ece_equal_mass: float
    ece_debiased: float
    smooth_ece: float
    mcc: float
    """At the threshold of each fold that is optimal for MCC there."""
    fnr: float
    """At the same thresholds."""
    rejected: str | None = None
    """Why it may not be selected; None: it may."""


class EstimateWithInterval(Artifact):
    """A metric and its confidence interval; None: undefined for these scores."""

    estimate: float | None
    low: float | None
    high: float | None


class RiskControl(Artifact):
    """The margins between which the policy abstains, so that the risk of its predictions is controlled."""

    kind: Literal["fnr", "fpr", "error"]
    """Among accepted images (no abstention): fnr of the positives, fpr of the negatives, or error of all."""
    alpha: Probability
    """Maximum risk."""
    delta: Probability
    """Maximum probability, over calibration sets, that the risk exceeds alpha."""
    certified: bool
    """False: there is no guarantee and no abstention."""
    reason: str
    """The certified statement, or why nothing could be certified."""
    n: int = Field(ge=0)
    """Number of independent units in the test."""
    units: Literal["rows", "groups"]
    """The independent units: rows, or groups with one row drawn from each."""
    lo: float | None = None
    """Class 0 is predicted below this margin (logit of class 1 minus logit of class 0, before calibration)."""
    hi: float | None = None
    """Class 1 is predicted at and above this margin."""
    lo_probability: Probability | None = None
    """Calibrated probability at `lo`, for display."""
    hi_probability: Probability | None = None
    """Calibrated probability at `hi`, for display."""
    abstained: Probability = 0.0
    """Share of VAL_CALIB between `lo` and `hi`."""
    out_of_fold: dict[str, EstimateWithInterval] = {}
    """Under cross_fit, which certifies nothing: operating point -> the risk of all images, without abstention. Model,
    calibrator and threshold of each image were fitted without its group."""

    @model_validator(mode="after")
    def _check_bounds(self) -> "RiskControl":
        bounds_given = [bound is not None for bound in (self.lo, self.hi)]
        if bounds_given != [self.certified] * 2:
            raise ValueError("lo and hi must be set if, and only if, the risk is certified")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise ValueError(f"lo {self.lo} is above hi {self.hi}")
        return self


class ScrcParams(Artifact):
    """The calibrator, the operating points on its probabilities, and the risk control."""

    method: str
    """phase5.method."""
    calibrator: CalibratorState
    ensemble_weights: dict[str, Probability]
    """Weights of the members of an ensemble; empty for other calibrators."""
    threshold: Probability
    """MCC-optimal threshold of the classifier without abstention, at the prevalence of the data."""
    operating_points: Annotated[dict[str, OperatingPoint], AfterValidator(_with_balanced)]
    """data: equal to `threshold`. balanced: for prevalence 1/2. Both are means of the optima of resamples."""
    risk_control: RiskControl
    candidates: tuple[CandidateMetrics, ...]
    """All candidates of the selection, the uncalibrated scores first."""
    before: dict[str, EstimateWithInterval]
    """Metrics of the uncalibrated scores."""
    after: dict[str, EstimateWithInterval]
    """Cross-fitted metrics of the whole procedure, including the selection of calibrator and threshold."""
    ece_band: tuple[float, float]
    """Central 95 % interval of the ECE that perfectly calibrated probabilities of this size would have."""


class ScrcPolicy(Artifact):
    """scrc_params.json: calibration, a threshold, and abstention where the risk would exceed its limit."""

    policy_type: Literal["scrc"] = "scrc"
    schema_version: Literal[2] = 2
    scrc_params: ScrcParams
    metrics: dict[str, float | int | None]
    """Cross-fitted metrics before and after calibration, and the in-sample MCC of `threshold`. None: undefined."""
    scores: ScoresRef

    @property
    def balanced_threshold(self) -> float:
        """The threshold with the highest MCC at prevalence 1/2."""
        return self.scrc_params.operating_points["balanced"].threshold


class OutOfFoldReport(Artifact):
    """out_of_fold.json: metrics of the images of all folds of cross_fit."""

    scores: ScoresRef
    """The scores of the models of the folds."""
    folds: int = Field(ge=2)
    n: int = Field(gt=0)
    """Number of images."""
    units: int = Field(gt=0)
    """Number of groups, or of images without groups."""
    rarer_units: int = Field(ge=0)
    """Number of units that contain the rarer class."""
    few_units: bool
    """Whether the units are too few for reliable intervals."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the intervals."""
    metrics: dict[str, EstimateWithInterval]
    """Metric -> its value. Model, calibrator and threshold of each image were fitted without its group."""


Policy = Annotated[ThresholdPolicy | ScrcPolicy, Field(discriminator="policy_type")]


class FileDigest(Artifact):
    """Digest and size of one file."""

    sha256: Digest
    bytes: int = Field(ge=0, lt=2**63)


class RuntimeParity(Artifact):
    """Differences between an exported graph and the calibrated PyTorch model on the same images."""

    split: Literal["val_select"] = "val_select"
    """The compared images."""
    n: int = Field(gt=0)
    """Number of images."""
    positives: int = Field(ge=0)
    """Number of images of class 1."""
    max_logit_difference: float = Field(ge=0)
    max_probability_difference: Probability
    """Maximum difference of the calibrated probability of class 1."""
    decision_flips: int = Field(ge=0)
    """Number of images whose decision differs."""
    certified_flips: int = Field(ge=0)
    """Number of images whose certified prediction differs; 0 without a certificate."""
    pytorch_mcc: float = Field(ge=-1, le=1)
    """MCC of the exported policy on the logits of the PyTorch model."""
    mcc: float = Field(ge=-1, le=1)
    """MCC of the same policy on the logits of the graph."""
    cpu: str
    """Widest vector instructions of the CPU used; bf16 and int8 may round differently on other CPUs."""


class RuntimeRef(Artifact):
    """The exported graph that replaces the PyTorch backbone."""

    name: Literal["onnx", "openvino"]
    """A name in RUNTIMES."""
    precision: Precision
    files: tuple[str, ...] = Field(min_length=1)
    """File names of the graph; the first one is opened, the others are loaded by it."""
    feature_dim: int = Field(ge=1)
    """Width of the features that the graph returns next to the logits."""
    fusion_weights: str | None = None
    """File name of the trained fusion's weights in a format that needs no PyTorch; None without a trained fusion."""
    calibration_images: int = Field(ge=0)
    """Number of TRAIN images used to calibrate the int8 ranges; 0 for other precisions."""
    parity: RuntimeParity


class BundleManifest(Artifact):
    """bundle.json: the exported policy, and the digest of every other file of the bundle."""

    schema_version: Literal[2, 3] = 2
    """3 for a bundle with a runtime, else 2."""
    policy_type: Literal["threshold", "scrc"]
    policy: Policy
    class_names: tuple[str, str]
    """Names of class 0 and class 1."""
    model_checkpoint: str
    """File name of the classifier's state dict."""
    model_description: str
    """File name of the classifier's architecture and preprocessing."""
    fusion_description: str | None = None
    """File name of the description of views and fusion; None: each image is one view."""
    fusion_weights: str | None = None
    """File name of the trained fusion's state dict; None for an untrained fusion."""
    runtime: RuntimeRef | None = None
    """The exported graph of the backbone; None: PyTorch."""
    files: dict[str, FileDigest]
    """Every file of the bundle except bundle.json, by file name."""
    data_fingerprint: Digest
    """Fingerprint of the data set that the bundle was trained on."""
    split_sha256: Digest | None = None
    """Digest of the split of that data set; None in bundles of earlier versions."""
    versions: dict[str, str]
    """Versions of Python and of the packages that produced the bundle."""
    digest: Digest
    """sha256 of the other fields as canonical JSON."""

    @model_validator(mode="after")
    def _check_consistency(self) -> "BundleManifest":
        if self.policy.policy_type != self.policy_type:
            raise ValueError(f"policy_type is {self.policy_type!r} but the policy is {self.policy.policy_type!r}")
        for field in ("model_checkpoint", "model_description", "fusion_description", "fusion_weights"):
            if getattr(self, field) not in (*self.files, None):
                raise ValueError(f"{field} names {getattr(self, field)!r}, which is not in files")
        model_sha256 = self.files[self.model_checkpoint].sha256
        if model_sha256 != self.policy.scores.model_sha256:
            fitted_on = self.policy.scores.model_sha256
            raise ValueError(
                f"the policy belongs to model {fitted_on[:12]}, but model_checkpoint is {model_sha256[:12]}"
            )
        if self.policy.scores.fusion != self._fusion():
            raise ValueError("the policy was fitted on scores of another fusion than the bundle's")
        if (self.schema_version == 3) != (self.runtime is not None):
            raise ValueError("schema_version must be 3 if, and only if, there is a runtime")
        for name in () if self.runtime is None else (*self.runtime.files, self.runtime.fusion_weights):
            if name not in (*self.files, None):
                raise ValueError(f"runtime names {name!r}, which is not in files")
        if self.runtime is not None and (self.runtime.fusion_weights is None) != (self.fusion_weights is None):
            raise ValueError("runtime.fusion_weights must be set if, and only if, fusion_weights is set")
        return self

    @model_serializer(mode="wrap")
    def _omit_empty_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        # Earlier bundles do not have these fields, and their digest is without them.
        content: dict[str, JsonValue] = serialize(self)
        for name in ("runtime", "split_sha256"):
            if getattr(self, name) is None:
                content.pop(name, None)
        return content

    def _fusion(self) -> FusionRef | None:
        if self.fusion_description is None:
            if self.fusion_weights is not None:
                raise ValueError("fusion_weights requires fusion_description")
            return None
        weights = None if self.fusion_weights is None else self.files[self.fusion_weights].sha256
        return FusionRef(description_sha256=self.files[self.fusion_description].sha256, weights_sha256=weights)

"""What thresholds.json, scrc_params.json and bundle.json hold.

Every model refuses unknown fields and numbers that are not finite. A policy carries the digest of the scores that
it was fitted on and of the model that made them, so a chain that does not close can be refused.
"""

from typing import Annotated, Literal

from pydantic import (
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
"""In which numbers an exported graph multiplies."""


class Artifact(BaseModel):
    """Base of everything that is written to disk and read back."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FusionRef(Artifact):
    """Which fusion of views made scores."""

    description_sha256: Digest
    """Digest of the file that says how images are cut and views are fused."""
    weights_sha256: Digest | None = None
    """Digest of the trained fusion's checkpoint; None where nothing was trained."""


class ScoresRef(Artifact):
    """Which scores a policy belongs to."""

    sha256: Digest
    """Digest of the scores: logits, labels and rows."""
    model_sha256: Digest
    """Digest of the checkpoint that made them."""
    fusion: FusionRef | None = None
    """How many views of each image were fused; None: each image is one view."""
    split: str
    """The split that was scored."""
    n: int = Field(gt=0)
    """Rows."""
    positives: int = Field(ge=0)
    """Rows of class 1."""


class ThresholdInterval(Artifact):
    """How far the threshold moves when it is chosen anew on resamples of the same rows."""

    low: Probability
    high: Probability
    level: float = Field(gt=0, lt=1)
    """Share of the resamples whose threshold lies between low and high."""
    n_resamples: int = Field(ge=2)
    units: int = Field(gt=0)
    """Independent units that were drawn: groups, or rows where there are no groups."""


class OperatingPoint(Artifact):
    """A threshold for another purpose than the highest MCC at the data's own prevalence."""

    threshold: Probability
    metrics: dict[str, float]
    """Figures of the counts at the threshold, on the scores it was fitted on."""


class ThresholdPolicy(Artifact):
    """thresholds.json: cut the softmax probability of class 1 here."""

    policy_type: Literal["threshold"] = "threshold"
    schema_version: Literal[2] = 2
    threshold: Probability
    """An image is class 1 when its probability is at least this."""
    interval: ThresholdInterval
    metrics: dict[str, float | int | None]
    """Figures at the threshold, on the scores it was fitted on. None where the scores leave a figure undefined."""
    operating_points: dict[str, OperatingPoint | None]
    """balanced: highest MCC as if half the images were positive; recall: the fewest false alarms at the wanted recall;
    fpr: the fewest misses at the wanted false alarm rate, None where no threshold keeps it."""
    scores: ScoresRef

    @property
    def balanced_threshold(self) -> float:
        """The threshold with the highest MCC as if half the images were positive."""
        point = self.operating_points["balanced"]
        assert point is not None, "only the operating point fpr may be missing"
        return point.threshold


class CalibratorState(Artifact):
    """A fitted calibrator as JSON."""

    name: str
    """Its name in CALIBRATORS."""
    state: dict[str, JsonValue]
    """What its `state()` returned."""


class CandidateFigures(Artifact):
    """One way to calibrate, judged by cross-fitted probabilities of VAL_CALIB."""

    name: str
    """In CALIBRATORS, or ensemble."""
    nll: float
    brier: float
    brier_miscalibration: float
    """Part of the Brier score that isotonic recalibration of these rows would gain."""
    brier_discrimination: float
    """Part of the Brier score that the scores gain over the base rate."""
    ece: float
    """Over 15 bins of equal width: the primary one."""
    ece_equal_mass: float
    ece_debiased: float
    smooth_ece: float
    mcc: float
    """At the cut that is best for these probabilities."""
    fnr: float
    """Miss rate at that cut."""
    rejected: str | None = None
    """Why it may not be chosen."""


class EstimateWithInterval(Artifact):
    """A figure and its confidence interval; None where the scores leave it undefined."""

    estimate: float | None
    low: float | None
    high: float | None


class RiskControl(Artifact):
    """Between which scores a person decides, so that the risk of an answer is kept."""

    kind: Literal["fnr", "fpr", "error"]
    """Misses among answered positives, false alarms among answered negatives, or errors among all that is answered."""
    alpha: Probability
    """The risk that is allowed."""
    delta: Probability
    """Chance over calibration sets that the risk is above alpha all the same."""
    certified: bool
    """False: nothing is promised, and nothing is handed over."""
    why: str
    """A sentence on what was certified, or on what is missing."""
    n: int = Field(ge=0)
    """Independent units that the test counted."""
    units: Literal["rows", "groups"]
    """What counts as one unit: a row, or one row of each group."""
    lo: float | None = None
    """Answered 0 below this margin: logit of class 1 less logit of class 0, before calibration."""
    hi: float | None = None
    """Answered 1 from this margin on."""
    lo_probability: Probability | None = None
    """The calibrated probability at `lo`, for people."""
    hi_probability: Probability | None = None
    """The calibrated probability at `hi`, for people."""
    abstained: Probability = 0.0
    """Share of VAL_CALIB between the two."""

    @model_validator(mode="after")
    def _is_whole(self) -> "RiskControl":
        ends = (self.lo, self.hi)
        if self.certified != (None not in ends) or (None in ends and ends != (None, None)):
            raise ValueError("lo and hi are given when, and only when, the risk is certified")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise ValueError(f"lo is {self.lo}, above hi {self.hi}")
        return self


class ScrcParams(Artifact):
    """The calibrator, the operating points on its probabilities and the control of risk."""

    method: str
    """phase5.method, which led to the calibrator."""
    calibrator: CalibratorState
    ensemble_weights: dict[str, Probability]
    """Of its members when the calibrator is an ensemble; else empty."""
    threshold: Probability
    """Operating point of the classifier that always answers, at the data's own prevalence."""
    operating_points: dict[str, OperatingPoint]
    """data: `threshold` again; balanced: the highest MCC as if half the images were positive."""
    risk_control: RiskControl
    candidates: tuple[CandidateFigures, ...]
    """What the calibrator was chosen from, the uncalibrated scores first."""
    before: dict[str, EstimateWithInterval]
    """Figures of the uncalibrated scores."""
    after: dict[str, EstimateWithInterval]
    """Figures of the whole procedure, choice of calibrator and threshold included, cross-fitted."""
    ece_band: tuple[float, float]
    """The ECE that the cross-fitted probabilities would show if they were exactly right: the central 95 %."""


class ScrcPolicy(Artifact):
    """scrc_params.json: calibrate first, then cut, and hand over where the risk would not be kept."""

    policy_type: Literal["scrc"] = "scrc"
    schema_version: Literal[2] = 2
    scrc_params: ScrcParams
    metrics: dict[str, float | int | None]
    """Cross-fitted figures before and after calibration, and the MCC of `threshold` on the rows that it was found on.

    None where the scores leave a figure undefined.
    """
    scores: ScoresRef

    @property
    def balanced_threshold(self) -> float:
        """The threshold with the highest MCC as if half the images were positive."""
        return self.scrc_params.operating_points["balanced"].threshold


Policy = Annotated[ThresholdPolicy | ScrcPolicy, Field(discriminator="policy_type")]


class FileDigest(Artifact):
    """Digest and size of one file."""

    sha256: Digest
    bytes: int = Field(ge=0)


class RuntimeParity(Artifact):
    """How far the answers of an exported graph are from those of the model that was calibrated."""

    split: Literal["val_select"] = "val_select"
    """The images that both were asked about."""
    n: int = Field(gt=0)
    """Images."""
    positives: int = Field(ge=0)
    """Images of class 1."""
    max_logit_difference: float = Field(ge=0)
    max_probability_difference: Probability
    """Of the calibrated probability of class 1."""
    decision_flips: int = Field(ge=0)
    """Images whose decision differs."""
    certified_flips: int = Field(ge=0)
    """Images whose certified answer differs; none where nothing is certified."""
    pytorch_mcc: float = Field(ge=-1, le=1)
    """Of the shipped policy on the logits of the model that was calibrated."""
    mcc: float = Field(ge=-1, le=1)
    """Of the same policy on the logits of the graph."""
    cpu: str
    """Widest instructions of the processor that it was measured on; bf16 and int8 may round otherwise on another."""


class RuntimeRef(Artifact):
    """The exported graph that takes the place of the backbone."""

    name: Literal["onnx", "openvino"]
    """In RUNTIMES."""
    precision: Precision
    files: tuple[str, ...] = Field(min_length=1)
    """File names of the graph, the one that is opened first."""
    calibration_images: int = Field(ge=0)
    """Images of TRAIN that the ranges of int8 were taken from; 0 where none were."""
    parity: RuntimeParity


class BundleManifest(Artifact):
    """bundle.json: the one policy that ships and a seal for every file beside it."""

    schema_version: Literal[2, 3] = 2
    """3 where there is a runtime, which version 2 does not know; all other bundles are of version 2."""
    policy_type: Literal["threshold", "scrc"]
    policy: Policy
    class_names: tuple[str, str]
    """Names of class 0 and class 1."""
    model_checkpoint: str
    """File name of the classifier's state dict."""
    model_description: str
    """File name of the classifier's architecture and preprocessing."""
    fusion_description: str | None = None
    """File name of how images are cut and views are fused; None: each image is one view."""
    fusion_weights: str | None = None
    """File name of the trained fusion's state dict; None where nothing was trained."""
    runtime: RuntimeRef | None = None
    """What runs the backbone in place of PyTorch; None: PyTorch does."""
    files: dict[str, FileDigest]
    """Every file of the bundle but this one, by name inside the folder."""
    data_fingerprint: Digest
    """Fingerprint of the data set whose splits made this bundle."""
    made_with: dict[str, str]
    """Versions of what made it."""
    digest: Digest
    """sha256 of everything else in this file, as canonical JSON."""

    @model_validator(mode="after")
    def _closes(self) -> "BundleManifest":
        if self.policy.policy_type != self.policy_type:
            raise ValueError(f"policy_type is {self.policy_type!r} but the policy is {self.policy.policy_type!r}")
        for field in ("model_checkpoint", "model_description", "fusion_description", "fusion_weights"):
            if getattr(self, field) not in (*self.files, None):
                raise ValueError(f"{field} names {getattr(self, field)!r}, which is not in files")
        sealed = self.files[self.model_checkpoint].sha256
        if sealed != self.policy.scores.model_sha256:
            raise ValueError(f"the policy belongs to model {self.policy.scores.model_sha256[:12]}, not {sealed[:12]}")
        if self.policy.scores.fusion != self._fusion():
            raise ValueError("the policy belongs to scores that were fused in another way than the bundle's")
        self._check_runtime()
        return self

    def _check_runtime(self) -> None:
        if (self.schema_version == 3) != (self.runtime is not None):
            raise ValueError("schema_version is 3 when, and only when, there is a runtime")
        named = () if self.runtime is None else self.runtime.files
        if missing := [name for name in named if name not in self.files]:
            raise ValueError(f"runtime names {missing[0]!r}, which is not in files")

    @model_serializer(mode="wrap")
    def _as_its_version_has_it(self, write: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        written: dict[str, JsonValue] = write(self)
        if self.runtime is None:
            written.pop("runtime", None)
        return written

    def _fusion(self) -> FusionRef | None:
        if self.fusion_description is None:
            if self.fusion_weights is not None:
                raise ValueError("fusion_weights are named without fusion_description")
            return None
        weights = None if self.fusion_weights is None else self.files[self.fusion_weights].sha256
        return FusionRef(description_sha256=self.files[self.fusion_description].sha256, weights_sha256=weights)

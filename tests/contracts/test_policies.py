import pytest
from pydantic import ValidationError

from streetvision.contracts.policies import (
    BundleManifest,
    FusionRef,
    OperatingPoint,
    RiskControl,
    ScoresRef,
    ScrcPolicy,
    ThresholdInterval,
    ThresholdPolicy,
)

MODEL, OTHER = "a" * 64, "b" * 64
SCORES = ScoresRef(sha256=OTHER, model_sha256=MODEL, split="val_calib", n=10, positives=4)
INTERVAL = ThresholdInterval(low=0.3, high=0.5, level=0.95, n_resamples=1000, units=10)
POINTS = {
    "data": OperatingPoint(threshold=0.4, metrics={"mcc": 0.9}),
    "balanced": OperatingPoint(threshold=0.6, metrics={"mcc": 0.8}),
}
POLICY = ThresholdPolicy(threshold=0.4, interval=INTERVAL, metrics={"mcc": 0.9}, operating_points=POINTS, scores=SCORES)
BUNDLE = {
    "policy_type": "threshold",
    "policy": POLICY.model_dump(),
    "class_names": ("None", "Roadwork"),
    "model_checkpoint": "model.pth",
    "model_description": "model_config.json",
    "files": {"model.pth": {"sha256": MODEL, "bytes": 1}, "model_config.json": {"sha256": OTHER, "bytes": 1}},
    "data_fingerprint": OTHER,
    "versions": {},
    "digest": OTHER,
}


def test_a_consistent_bundle_is_accepted():
    assert BundleManifest.model_validate(BUNDLE).policy == POLICY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_type": "scrc"}, "policy_type is 'scrc'"),
        ({"model_checkpoint": "other.pth"}, "which is not in files"),
        ({"files": BUNDLE["files"] | {"model.pth": {"sha256": OTHER, "bytes": 1}}}, "belongs to model aaaaaaaaaaaa"),
        ({"schema_version": 1}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"data_fingerprint": "short"}, "data_fingerprint"),
    ],
)
def test_an_inconsistent_bundle_is_rejected(change, message):
    with pytest.raises(ValidationError, match=message):
        BundleManifest.model_validate(BUNDLE | change)


PARITY = {
    "n": 10,
    "positives": 4,
    "max_logit_difference": 0.1,
    "max_probability_difference": 0.01,
    "decision_flips": 0,
    "certified_flips": 0,
    "pytorch_mcc": 0.9,
    "mcc": 0.9,
    "cpu": "AVX2",
}
RUNTIME = {
    "feature_dim": 32,
    "name": "onnx",
    "precision": "fp32",
    "files": ["model.onnx"],
    "calibration_images": 0,
    "parity": PARITY,
}
EXPORTED = BUNDLE | {
    "schema_version": 3,
    "runtime": RUNTIME,
    "files": BUNDLE["files"] | {"model.onnx": {"sha256": OTHER, "bytes": 1}},
}


def test_only_a_bundle_with_a_runtime_has_version_3():
    assert BundleManifest.model_validate(EXPORTED).model_dump(mode="json")["runtime"]["parity"]["split"] == "val_select"
    assert "runtime" not in BundleManifest.model_validate(BUNDLE).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version must be 3"),
        ({"runtime": None}, "schema_version must be 3"),
        ({"runtime": RUNTIME | {"files": ["other.onnx"]}}, r"runtime names 'other\.onnx', which is not in files"),
        ({"runtime": RUNTIME | {"files": []}}, "files"),
        ({"runtime": RUNTIME | {"name": "shell"}}, "runtime.name"),
        ({"runtime": RUNTIME | {"parity": PARITY | {"max_logit_difference": float("nan")}}}, "max_logit_difference"),
    ],
)
def test_an_incomplete_runtime_is_rejected(change, message):
    with pytest.raises(ValidationError, match=message):
        BundleManifest.model_validate(EXPORTED | change)


FUSION = {"description_sha256": OTHER, "weights_sha256": MODEL}
FUSED = BUNDLE | {
    "policy": POLICY.model_copy(
        update={"scores": SCORES.model_copy(update={"fusion": FusionRef(**FUSION)})}
    ).model_dump(),
    "fusion_description": "cvfm_config.json",
    "fusion_weights": "cvfm_weights.pth",
    "files": BUNDLE["files"]
    | {"cvfm_config.json": {"sha256": OTHER, "bytes": 1}, "cvfm_weights.pth": {"sha256": MODEL, "bytes": 1}},
}


def test_a_bundle_with_its_fusion_is_accepted():
    assert BundleManifest.model_validate(FUSED).policy.scores.fusion.weights_sha256 == MODEL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": POLICY.model_dump()}, "another fusion"),
        ({"fusion_weights": None}, "another fusion"),
        ({"fusion_description": None, "fusion_weights": None}, "another fusion"),
        ({"fusion_description": None}, "requires fusion_description"),
        ({"fusion_description": "other.json"}, "which is not in files"),
        ({"files": FUSED["files"] | {"cvfm_config.json": {"sha256": MODEL, "bytes": 1}}}, "another fusion"),
    ],
)
def test_a_fusion_that_the_policy_was_not_fitted_on_is_rejected(change, message):
    with pytest.raises(ValidationError, match=message):
        BundleManifest.model_validate(FUSED | change)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValidationError):
        ThresholdPolicy(threshold=threshold, interval=INTERVAL, metrics={}, operating_points=POINTS, scores=SCORES)


RISK = {"kind": "fnr", "alpha": 0.05, "delta": 0.1, "reason": "", "n": 60, "units": "rows"}


@pytest.mark.parametrize(
    "change",
    [{"certified": True}, {"certified": False, "lo": 0.0, "hi": 1.0}, {"certified": True, "lo": 0.0}],
)
def test_a_certified_risk_has_both_bounds_and_others_have_none(change):
    with pytest.raises(ValidationError, match="lo and hi must be set"):
        RiskControl.model_validate(RISK | change)


def test_the_lower_bound_is_at_most_the_upper_bound():
    assert RiskControl.model_validate(RISK | {"certified": True, "lo": -1.0, "hi": 1.0}).certified
    with pytest.raises(ValidationError, match="above hi"):
        RiskControl.model_validate(RISK | {"certified": True, "lo": 2.0, "hi": 1.0})


SCRC = {
    "policy_type": "scrc",
    "scrc_params": {
        "method": "auto",
        "calibrator": {"name": "none", "state": {}},
        "ensemble_weights": {},
        "threshold": 0.4,
        "operating_points": {name: point.model_dump() for name, point in POINTS.items()},
        "risk_control": RISK | {"certified": False},
        "candidates": [],
        "before": {},
        "after": {},
        "ece_band": [0.01, 0.04],
    },
    "metrics": {},
    "scores": SCORES.model_dump(),
}


def test_both_policies_have_a_balanced_threshold():
    threshold = POLICY.model_copy(update={"operating_points": POINTS | {"fpr": None}})
    assert threshold.balanced_threshold == ScrcPolicy.model_validate(SCRC).balanced_threshold == 0.6


@pytest.mark.parametrize("points", [{}, {"balanced": None}])
def test_a_policy_without_a_balanced_point_is_rejected(points):
    with pytest.raises(ValidationError, match="balanced"):
        ThresholdPolicy(threshold=0.4, interval=INTERVAL, metrics={}, operating_points=points, scores=SCORES)
    with pytest.raises(ValidationError, match="balanced"):
        ScrcPolicy.model_validate(SCRC | {"scrc_params": SCRC["scrc_params"] | {"operating_points": points}})


def test_a_bundle_may_contain_either_policy():
    shipped = BundleManifest.model_validate(BUNDLE | {"policy_type": "scrc", "policy": SCRC})
    assert BundleManifest.model_validate_json(shipped.model_dump_json()) == shipped
    assert isinstance(shipped.policy, ScrcPolicy)

"""The miner folder, loaded as the stock miner loads it, against the bundle that it was made from."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from streetvision.bundle.format import write_bundle
from streetvision.bundle.predictor import Predictor
from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import CalibratorState
from streetvision.io.atomic import read_json, sha256_file, write_json_atomic
from streetvision.io.tensors import save_tensors
from streetvision.io.validators import PolicyValidator
from streetvision.models.backbone import BackboneConfig
from streetvision.models.module import HeadConfig, ModelConfig, load_classifier
from streetvision.serving.miner import Submission, check_miner, straight_line, write_miner

SUBMISSION = Submission("a model", "of nothing", "1.2.3", "hotkey")
SIDE = 32


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Tiny backbones of each family that has a stock classifier, and of one that has none."""
    import transformers

    folder, sizes = tmp_path_factory.mktemp("backbones"), {"hidden_size": 16, "num_hidden_layers": 2}
    common = sizes | {"num_attention_heads": 2, "patch_size": 16}
    torch.manual_seed(0)
    vit = transformers.ViTConfig(**common, image_size=SIDE, intermediate_size=32)
    dinov2 = transformers.Dinov2Config(**common, image_size=48, mlp_ratio=4, layerscale_value=0.7)
    for name, model in (
        ("vit", transformers.ViTModel(vit, add_pooling_layer=False)),
        ("dinov2", transformers.Dinov2Model(dinov2)),
    ):
        for parameter in model.parameters():  # norms and scales away from 1, as training leaves them
            parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return {
        "vit": BackboneConfig(source="transformers", name=str(folder / "vit"), image_size=SIDE),
        "dinov2": BackboneConfig(source="transformers", name=str(folder / "dinov2"), image_size=SIDE),
        "timm": BackboneConfig(source="timm", name="vit_tiny_patch16_224", image_size=SIDE),
        "dinov3": BackboneConfig(source="random", width=16, depth=1, heads=2, image_size=SIDE),
    }


@pytest.fixture
def bundle_of(backbones, finished_run, tmp_path):
    """A predictor of a new model: its head drawn, its calibrator fitted on drawn scores."""

    def make(backbone, *, calibrator="platt", threshold=0.3, pooling="cls", head=None):
        torch.manual_seed(1)
        config = ModelConfig(backbone=backbones[backbone], pooling=pooling, head=head or HeadConfig())
        classifier = load_classifier(config)
        for parameter in classifier.head.parameters():
            parameter.data += torch.randn_like(parameter)
        save_tensors(tmp_path / "model.pth", classifier.state_dict())
        write_json_atomic(tmp_path / "model_config.json", classifier.description.model_dump(mode="json"))
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 400)
        logits = np.stack([np.zeros(400), rng.normal(size=400) + 2 * labels - 1], axis=1)
        fitted = CALIBRATORS[calibrator]().fit(logits, labels)
        policy = PolicyValidator().validate(finished_run / "phase5_scrc" / "scrc_params.json")
        params, sha = policy.scrc_params, sha256_file(tmp_path / "model.pth")
        point = params.operating_points["balanced"].model_copy(update={"threshold": threshold})
        change = {
            "calibrator": CalibratorState(name=calibrator, state=fitted.state()),
            "operating_points": params.operating_points | {"balanced": point},
        }
        policy = policy.model_copy(
            update={
                "scrc_params": params.model_copy(update=change),
                "scores": policy.scores.model_copy(update={"model_sha256": sha}),
            }
        )
        files = {name: tmp_path / name for name in ("model.pth", "model_config.json")}
        names = ("None", "Roadwork")
        bundle = write_bundle(
            tmp_path / "export", files, policy=policy, class_names=names, data_fingerprint=policy.scores.sha256
        )
        return Predictor(bundle)

    return make


@pytest.fixture(scope="module")
def images(scenes):
    return sorted((scenes / "images").iterdir())[:12]


@pytest.mark.parametrize("backbone", ["vit", "dinov2", "timm"])
def test_the_stock_miner_answers_as_the_bundle_does(bundle_of, backbone, images, tmp_path):
    predictor = bundle_of(backbone)
    line = write_miner(predictor, tmp_path / "miner", SUBMISSION)
    assert line.error < 1e-9
    found = check_miner(predictor, tmp_path / "miner", images)
    assert found.images == len(images)
    assert found.difference < 2e-3
    assert (found.disagreements, found.invalid) == (0, 0)


def test_another_interpreter_loads_it_too(bundle_of, images, tmp_path):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    here = check_miner(predictor, tmp_path / "miner", images[:2])
    there = check_miner(predictor, tmp_path / "miner", images[:2], python=sys.executable)
    assert replace(there, p95_seconds=here.p95_seconds) == here


def test_the_files_and_labels_are_those_that_the_miner_asks_for(bundle_of, tmp_path):
    import safetensors.torch

    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    assert sorted(path.name for path in (tmp_path / "miner").iterdir()) == [
        "config.json",
        "model.safetensors",
        "model_card.json",
        "preprocessor_config.json",
    ]
    config = read_json(tmp_path / "miner" / "config.json")
    assert config["id2label"] == {"0": "None", "1": "Roadwork"}
    assert "problem_type" not in config
    assert config["num_hidden_layers"] == 3
    processor = read_json(tmp_path / "miner" / "preprocessor_config.json")
    assert processor["image_processor_type"] == "ViTImageProcessor"
    assert processor["size"] == {"height": SIDE, "width": SIDE}
    assert tuple(processor["image_mean"]) == predictor.classifier.backbone.spec.mean
    card = read_json(tmp_path / "miner" / "model_card.json")
    assert card.keys() == {"model_name", "description", "version", "submitted_by", "submission_time"}
    assert (card["version"], card["submitted_by"]) == ("1.2.3", "hotkey")
    state = safetensors.torch.load_file(tmp_path / "miner" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert not state["classifier.weight"][0].any()
    assert state["classifier.bias"][0] == 0


@pytest.mark.parametrize("calibrator", ["temperature", "platt"])
def test_a_calibration_that_is_linear_is_carried_exactly(bundle_of, calibrator):
    predictor = bundle_of("vit", calibrator=calibrator, threshold=0.37)
    line = straight_line(predictor)
    margins = np.linspace(-8, 8, 200)
    p = predictor.probabilities(torch.from_numpy(np.stack([0 * margins, margins], axis=1)))
    assert expit(line.slope * (margins - line.cut)) == pytest.approx(expit(logit(p) - logit(0.37)), abs=1e-6)
    assert line.error < 1e-6


@pytest.mark.parametrize("calibrator", ["beta", "isotonic", "smooth_isotonic"])
def test_any_other_keeps_decisions_and_says_how_far_it_is_off(bundle_of, calibrator):
    predictor = bundle_of("vit", calibrator=calibrator, threshold=0.4)
    line = straight_line(predictor)
    margins = np.random.default_rng(0).uniform(-8, 8, 2000)
    p = predictor.probabilities(torch.from_numpy(np.stack([0 * margins, margins], axis=1)))
    answers = expit(line.slope * (margins - line.cut))
    assert np.array_equal(answers > 0.5, p >= 0.4)
    meant = expit(logit(answers) + logit(0.4))
    assert np.abs(meant - p).max() <= line.error + 1e-6
    assert 1e-3 < line.error < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit", "pooling": "cls_mean"}, "'cls_mean'.*model.pooling=cls"),
        ({"backbone": "vit", "head": HeadConfig(kind="mlp")}, "head of kind 'mlp'"),
        ({"backbone": "dinov3"}, "'dinov3_vit' has no stock classifier"),
        ({"backbone": "vit", "threshold": 1.0}, "one class only"),
    ],
)
def test_what_no_stock_classifier_carries_is_refused(bundle_of, options, message, tmp_path):
    with pytest.raises(ArtifactError, match=re.compile(message, re.DOTALL)):
        write_miner(bundle_of(**options), tmp_path / "miner", SUBMISSION)
    assert not (tmp_path / "miner").exists()


def test_a_model_that_answers_otherwise_leaves_no_folder(bundle_of, tmp_path, monkeypatch):
    monkeypatch.setattr("streetvision.serving.stock_vit.LOUD", 0.5)  # the residual stream drowns the norm
    with pytest.raises(ArtifactError, match="does not answer as the bundle does"):
        write_miner(bundle_of("vit"), tmp_path / "miner", SUBMISSION)
    assert not (tmp_path / "miner").exists()


def test_a_folder_that_holds_something_is_left_alone(bundle_of, tmp_path):
    (tmp_path / "miner").mkdir()
    (tmp_path / "miner" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        write_miner(bundle_of("vit"), tmp_path / "miner", SUBMISSION)
    assert (tmp_path / "miner" / "mine").exists()


def test_wrong_labels_and_a_moved_threshold_are_found(bundle_of, images, command, tmp_path):
    bundle_of("vit")
    out = tmp_path / "miner"
    code, told, err = command("export", "--bundle", tmp_path / "export", "--out", out, "--format", "miner")
    assert code == 0, err
    assert "--hotkey" in told
    check = ["check-export", out, *images, "--bundle", tmp_path / "export"]
    code, told, err = command(*check)
    assert code == 0, err
    assert "0 differ; 0 answers" in told
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"id2label": {"0": "none", "1": "roadwork"}}))
    code, told, _ = command(*check)
    assert code == 2
    assert f"{len(images)} answers are 0.5" in told
    (out / "config.json").unlink()
    code, _, err = command(*check)
    assert code == 2
    assert "the stock miner fails" in err


def test_the_version_is_checked_before_anything_is_written(command, finished_run, tmp_path):
    bundle = ["--bundle", finished_run / "export", "--out", tmp_path / "miner", "--format", "miner"]
    code, _, err = command("export", *bundle, "--version", "one")
    assert code == 2
    assert "is not X.Y.Z" in err


def test_real_weights_under_the_pinned_transformers(real_data, bundle_of, backbones, tmp_path):
    """STREETVISION_MINER_PYTHON names an interpreter with transformers 4.45.2; docs/subnet.md says how it is made."""
    other = os.environ.get("STREETVISION_MINER_PYTHON")
    if not other:
        pytest.skip("STREETVISION_MINER_PYTHON names no interpreter: the pinned transformers is left out")
    weights = real_data / "deit_tiny_patch16_224" / "model.safetensors"
    backbones["deit"] = BackboneConfig(source="timm", name="deit_tiny_patch16_224", weights=weights)
    predictor = bundle_of("deit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    signs = sorted((real_data / "gtsrb_roadwork" / "roadwork").iterdir())[:40]
    found = check_miner(predictor, tmp_path / "miner", signs, python=shutil.which(other))
    assert found.transformers == "4.45.2"
    assert (found.disagreements, found.invalid) == (0, 0)
    assert found.difference < 0.2  # it resizes through Pillow, a grey level off; the drawn head is steep

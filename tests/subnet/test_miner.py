"""The miner folder, loaded as the stock miner loads it, against the bundle that it was made from."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from streetvision.bundle.format import write_bundle
from streetvision.bundle.predictor import Predictor
from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError
from streetvision.contracts.policies import CalibratorState
from streetvision.contracts.progress import Silent
from streetvision.io.atomic import read_json, sha256_file, write_json_atomic
from streetvision.io.tensors import save_tensors
from streetvision.io.validators import PolicyValidator
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import LinearHeadConfig, MlpHeadConfig, ModelConfig
from streetvision.models.module import load_classifier
from streetvision.subnet.miner import Submission, check_miner, fit_linear_calibration, write_miner

SUBMISSION = Submission("a model", "of nothing", "1.2.3", "hotkey")
SIDE = 32
SIZE = (32, 48)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Tiny backbones of each family that has a stock classifier, and of one that has none."""
    import transformers

    folder, sizes = tmp_path_factory.mktemp("backbones"), {"hidden_size": 16, "num_hidden_layers": 2}
    common = sizes | {"num_attention_heads": 2, "patch_size": 16}
    dinov3 = common | {"image_size": SIDE, "layerscale_value": 0.7, "intermediate_size": 48}
    stages = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "layer_scale_init_value": 0.5}
    torch.manual_seed(0)
    vit = transformers.ViTConfig(**common, image_size=SIDE, intermediate_size=32)
    dinov2 = transformers.Dinov2Config(**common, image_size=48, mlp_ratio=4, layerscale_value=0.7)
    dinov2_giant = common | {"image_size": 48, "mlp_ratio": 4, "layerscale_value": 0.7, "use_swiglu_ffn": True}
    registers = common | {"image_size": 48, "mlp_ratio": 4, "layerscale_value": 0.7, "num_register_tokens": 4}
    gated = {"use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "proj_bias": False}
    for name, model in (
        ("vit", transformers.ViTModel(vit, add_pooling_layer=False)),
        ("dinov2", transformers.Dinov2Model(dinov2)),
        ("dinov2_giant", transformers.Dinov2Model(transformers.Dinov2Config(**dinov2_giant))),
        ("registers", transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**registers))),
        ("dinov3", transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**dinov3, num_register_tokens=4))),
        ("dinov3_plus", transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**dinov3, **gated))),
        ("dinov3_bias", transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**dinov3, key_bias=True))),
        ("convnext", transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**stages))),
    ):
        for parameter in model.parameters():  # norms and scales away from 1, as training leaves them
            parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    square_only = ("dinov2_giant", "registers")
    saved = {
        path.name: (
            BackboneConfig(source="transformers", name=str(path)),
            (SIDE, SIDE) if path.name in square_only else SIZE,
        )
        for path in folder.iterdir()
    }
    for name in square_only:
        saved[f"{name}_wide"] = (saved[name][0], SIZE)
    saved["convnext_wide"] = (saved["convnext"][0], (96, 192))
    saved["dinov2_square"] = (saved["dinov2"][0], (SIDE, SIDE))
    for side in (64, 96, 128, 160, 192, 224, 256):  # maps of 2 to 8 positions a side
        saved[f"convnext_{side}"] = (saved["convnext"][0], side)
    of_timm = {"timm": "vit_tiny_patch16_224", "flexivit": "flexivit_small"}
    return saved | {name: (BackboneConfig(source="timm", name=of), SIZE) for name, of in of_timm.items()}


@pytest.fixture
def bundle_of(backbones, finished_run, tmp_path):
    """A predictor of a new model: its head drawn, its calibrator fitted on drawn scores."""

    def make(backbone, *, calibrator="platt", threshold=0.3, pooling="cls", head=None):
        torch.manual_seed(1)
        config, size = backbones[backbone]
        config = ModelConfig(backbone=config, image_size=size, pooling=pooling, head=head or LinearHeadConfig())
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


PINNED = {"vit", "dinov2", "dinov2_giant", "timm", *(f"convnext_{side}" for side in (64, 96, 128, 160, 192, 224))}
PINNED |= {"convnext_wide", "dinov2_square"}
WITHOUT_EPSILON = {"vit", "dinov2", "dinov2_square", "timm"}
"""Tiny ones whose tokens spread so little that it shows: the norm behind the added block has no epsilon to speak of."""
NEWER = {"registers": "4.48", "dinov3": "4.53", "dinov3_plus": "4.53"}


@pytest.mark.parametrize("backbone", ["vit", "dinov2", "dinov2_square", "timm", "convnext_wide", *NEWER])
def test_the_stock_miner_answers_as_the_bundle_does(bundle_of, backbone, images, tmp_path):
    predictor = bundle_of(backbone)
    written = write_miner(predictor, tmp_path / "miner", SUBMISSION)
    assert written.calibration.error < 1e-9
    assert written.transformers == NEWER.get(backbone, "4.45.2")
    assert bool(written.also_needs) == backbone.startswith("dinov3")
    found = check_miner(predictor, tmp_path / "miner", images)
    assert found.images == len(images)
    assert found.difference < 2e-3
    assert (found.disagreements, found.invalid) == (0, 0)


@pytest.mark.parametrize("backbone", sorted({*PINNED, *NEWER}))
def test_every_stock_classifier_has_the_logits_of_the_head_that_it_carries(bundle_of, backbone, tmp_path):
    import transformers

    predictor = bundle_of(backbone, calibrator="temperature")
    line = write_miner(predictor, tmp_path / "miner", SUBMISSION).calibration
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "miner").eval()
    classifier = predictor.model.classifier
    spec, size = classifier.backbone.spec, classifier.description.image_size
    noise = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    ours = torch.from_numpy(predictor.logits(list(noise.numpy())))
    with torch.inference_mode():
        theirs = stock((noise / 255 - mean) / std).logits
    expected = line.slope * (ours[:, 1] - ours[:, 0] - line.cut)
    assert not theirs[:, 0].any()
    close = 1e-3 if backbone in WITHOUT_EPSILON else 1e-5
    assert theirs[:, 1].numpy() == pytest.approx(expected.numpy(), rel=close, abs=close)


def test_a_folder_that_the_pinned_version_cannot_load_comes_with_a_warning(bundle_of, command, tmp_path):
    for backbone, warned in (("dinov3", True), ("vit", False)):
        bundle_of(backbone)
        out = tmp_path / backbone
        code, printed, err = command("export", "--bundle", tmp_path / "export", "--out", out, "--format", "miner")
        assert code == 0, err
        assert ("pins transformers 4.45.2, which cannot load this folder" in err) == warned
        assert ("timm 1.0.20 or later" in printed + err) == warned
        assert ("model.pooling=cls model.layers=1" in err) == warned
        assert "transparency" in printed  # what the miner does otherwise


class Recorder(Silent):
    """Counts the items of each tracked loop."""

    def __init__(self):
        self.counts = {}

    def track(self, items, *, total, label, note=None):
        self.counts[label] = (len(list_ := list(items)), total)
        return iter(list_)


def test_another_interpreter_loads_it_too_and_both_show_their_progress(bundle_of, images, tmp_path):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    images = [shutil.copy(images[0], tmp_path / os.fsdecode(b"\xff.jpg")), images[1]]
    found = []
    for python in (None, sys.executable):
        progress = Recorder()
        found.append(check_miner(predictor, tmp_path / "miner", images, python=python, progress=progress))
        assert progress.counts == {"miner": (2, 2), "bundle": (2, 2)}
    here, there = found
    assert replace(there, p95_seconds=here.p95_seconds) == here


@pytest.mark.parametrize("python", [None, Path(sys.executable)])
def test_an_image_that_cannot_be_decoded_is_named_and_the_others_are_compared(bundle_of, images, python, tmp_path):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(images[0].read_bytes()[:100])
    found = check_miner(predictor, tmp_path / "miner", [damaged, *images[:2]], python=python)
    assert ([file.path for file in found.skipped], found.failures, found.images) == ([str(damaged)], (), 2)
    assert (found.disagreements, found.invalid) == (0, 0)
    with pytest.raises(DataError, match=r"damaged\.jpg"):
        check_miner(predictor, tmp_path / "miner", [damaged], python=python)


def test_an_image_on_which_the_miner_alone_fails_is_named_and_counted(bundle_of, images, monkeypatch, tmp_path):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    copy = shutil.copy(images[0], tmp_path / "copy.jpg")
    predict_prepared = predictor.predict_prepared

    def predict_and_damage(prepared):
        copy.write_bytes(b"no image")
        return predict_prepared(prepared)

    monkeypatch.setattr(predictor, "predict_prepared", predict_and_damage)
    found = check_miner(predictor, tmp_path / "miner", [copy, *images[1:3]])
    assert ([file.path for file in found.failures], found.skipped, found.invalid) == ([str(copy)], (), 1)
    assert found.disagreements == 0
    assert found.difference < 2e-3


def test_an_interpreter_that_cannot_be_run_is_a_user_error(bundle_of, images, tmp_path):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    with pytest.raises(ConfigError, match="cannot be run"):
        check_miner(predictor, tmp_path / "miner", images[:2], python=tmp_path / "none")


@pytest.mark.parametrize("output", ["loading", "loading\\377", "1", "{}", '{"probability": 1}', ""])
def test_an_interpreter_that_prints_no_predictions_is_an_error(bundle_of, images, tmp_path, output):
    predictor = bundle_of("vit")
    write_miner(predictor, tmp_path / "miner", SUBMISSION)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '{output}'\n")
    python.chmod(0o755)
    with pytest.raises(ArtifactError, match="the reference miner fails"):
        check_miner(predictor, tmp_path / "miner", images[:2], python=python)


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
    assert processor["size"] == {"height": SIZE[0], "width": SIZE[1]}
    assert tuple(processor["image_mean"]) == predictor.model.classifier.backbone.spec.mean
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
    line = fit_linear_calibration(predictor)
    margins = np.linspace(-8, 8, 200)
    p = predictor.probabilities(torch.from_numpy(np.stack([0 * margins, margins], axis=1)))
    assert expit(line.slope * (margins - line.cut)) == pytest.approx(expit(logit(p) - logit(0.37)), abs=1e-6)
    assert line.error < 1e-6


@pytest.mark.parametrize("calibrator", ["beta", "isotonic", "smooth_isotonic"])
def test_any_other_keeps_decisions_and_says_how_far_it_is_off(bundle_of, calibrator):
    predictor = bundle_of("vit", calibrator=calibrator, threshold=0.4)
    line = fit_linear_calibration(predictor)
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
        ({"backbone": "vit", "pooling": "cls_mean"}, "cls_mean.*model.pooling=cls"),
        ({"backbone": "vit", "head": MlpHeadConfig()}, "head of kind 'mlp'"),
        ({"backbone": "dinov3_bias"}, "dinov3_vit with key_bias = True"),
        ({"backbone": "convnext_256"}, "256 x 256 pixels: the last map has 8 x 8 positions.*from 64 to 224"),
        ({"backbone": "dinov3", "pooling": "mean"}, "mean.*model.pooling=cls"),
        ({"backbone": "convnext_64", "head": MlpHeadConfig()}, "head of kind 'mlp'"),
        ({"backbone": "registers_wide"}, "not square.*model.image_size=S"),
        ({"backbone": "dinov2_giant_wide"}, "not square.*model.image_size=S"),
        ({"backbone": "flexivit"}, "not a plain vision transformer: pos_embed"),
        ({"backbone": "vit", "threshold": 1.0}, "one class only"),
    ],
)
def test_what_no_stock_classifier_carries_is_refused(bundle_of, options, message, tmp_path):
    with pytest.raises(ArtifactError, match=re.compile(message, re.DOTALL)):
        write_miner(bundle_of(**options), tmp_path / "miner", SUBMISSION)
    assert not (tmp_path / "miner").exists()


def test_a_model_that_answers_otherwise_leaves_no_folder(bundle_of, tmp_path, monkeypatch):
    monkeypatch.setattr("streetvision.subnet.hf_vit.GAIN", 0.5)  # the residual stream drowns the norm
    with pytest.raises(ArtifactError, match="differs from the bundle"):
        write_miner(bundle_of("vit"), tmp_path / "miner", SUBMISSION)
    assert not (tmp_path / "miner").exists()


def test_a_folder_that_holds_something_is_left_alone(bundle_of, tmp_path):
    (tmp_path / "miner").mkdir()
    (tmp_path / "miner" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        write_miner(bundle_of("vit"), tmp_path / "miner", SUBMISSION)
    assert (tmp_path / "miner" / "mine").exists()


def test_wrong_labels_and_a_moved_threshold_are_found(bundle_of, images, command, tmp_path):
    bundle_of("vit")
    out = tmp_path / "miner"
    code, _, err = command("export", "--bundle", tmp_path / "export", "--out", out, "--format", "miner")
    assert code == 0, err
    assert "--hotkey" in err
    check = ["subnet", "check-export", out, *images, "--bundle", tmp_path / "export"]
    code, told, err = command(*check)
    assert code == 0, err
    assert "0 differ; 0 predictions" in told
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"id2label": {"0": "none", "1": "roadwork"}}))
    code, told, _ = command(*check)
    assert code == 2
    assert f"{len(images)} predictions are missing, 0.5" in told
    (out / "config.json").write_text("{}")
    code, _, err = command(*check)
    assert code == 2
    assert "the reference miner fails" in err
    (out / "config.json").unlink()
    code, _, err = command(*check)
    assert code == 2
    assert "there is no miner folder" in err


def test_the_version_is_checked_before_anything_is_written(command, finished_run, tmp_path):
    bundle = ["--bundle", finished_run / "export", "--out", tmp_path / "miner", "--format", "miner"]
    code, _, err = command("export", *bundle, "--version", "one")
    assert code == 2
    assert "is not X.Y.Z" in err


def test_real_weights_under_the_pinned_transformers(real_data, bundle_of, backbones, tmp_path):
    """STREETVISION_MINER_PYTHON names an interpreter with transformers 4.45.2 (docs/how-to/subnet.md)."""
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
    assert found.difference < 0.2  # it resizes through Pillow, a gray level off; the drawn head is steep

"""Phase 4c and what follows from it, for every mode that fuses views: through the command line, on a tiny run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, LeakageError
from streetvision.contracts.split_contracts import Split
from streetvision.eval.gate import compare_nll
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import read_json, sha256_file
from streetvision.io.manifests import file_digest
from streetvision.models.config import ViewsConfig
from streetvision.models.module import Classifier
from streetvision.models.multi_view import make_views
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine
from streetvision.pipeline.phases import PHASES
from tests.conftest import TINY_MODEL

PHASES_OF_VIEWS = "pipeline.phases=[phase4c_cvfm,phase5,phase6]"
GRID = ["phase4c.views.rows=1", "phase4c.views.columns=2", "phase5.folds=2", "phase4c.gate=off"]
MODES = {
    "mil": ["phase4c=mil", *GRID],
    "dense": ["phase4c=dense", *GRID[2:]],
    "multiview_mean": ["phase4c.mode=multiview_mean", *GRID],
    "cvfm_inference": ["phase4c.mode=cvfm_inference", "phase4c.inference.mode=noisy_or", *GRID],
    "cvfm_trained": ["phase4c=cvfm", *GRID, "phase4c.epochs=6", "phase4c.batch_size=16", "phase4c.learning_rate=0.01"],
}
FITTED = ("mil", "dense", "cvfm_trained")


@pytest.fixture(scope="module", params=MODES)
def fused_run(request, finished_run, tmp_path_factory):
    """A run with phase 4c, and its mode."""
    from streetvision.cli.app import main

    root = shutil.copytree(finished_run, tmp_path_factory.mktemp("fused") / "run")
    with pytest.raises(SystemExit) as stop:
        main(["train", f"run_dir={root}", PHASES_OF_VIEWS, *MODES[request.param]])
    assert not stop.value.code
    return ArtifactSchema(root), request.param


@pytest.fixture
def trained(fused_run, tmp_path):
    """A copy of the run with the trained fusion, for tests that change it."""
    return ArtifactSchema(shutil.copytree(fused_run[0].output_dir, tmp_path / "run"))


only_trained = pytest.mark.parametrize("fused_run", ["cvfm_trained"], indirect=True)


def rows_of(schema, split):
    splits = read_json(schema.splits_json)
    return [(Path(splits["root"]) / row["path"], row["label"]) for row in splits["rows"] if row["split"] == split]


def update_digest(schema, phase, path):
    """Record the digest of a changed file in the manifest."""
    manifest = read_json(schema.manifest(phase))
    manifest["outputs"][path.relative_to(schema.output_dir).as_posix()] = file_digest(path).model_dump()
    schema.manifest(phase).write_text(json.dumps(manifest))


def test_the_calibrated_fusion_is_exported(fused_run):
    schema, mode = fused_run
    predictor = load_bundle(schema.export_dir)
    assert predictor.inference == mode
    saved = torch.load(schema.cvfm_logits, weights_only=True)
    rows = rows_of(schema, "val_calib")
    shipped = torch.from_numpy(np.concatenate(list(predictor.stream_logits(path for path, _ in rows))))
    torch.testing.assert_close(shipped, saved, rtol=1e-5, atol=1e-5)
    assert torch.load(schema.cvfm_labels, weights_only=True).tolist() == [label for _, label in rows]
    assert not torch.allclose(saved, torch.load(schema.val_calib_logits, weights_only=True), atol=1e-5)


def test_policies_name_their_scores(fused_run):
    schema, mode = fused_run
    fused, single = (read_json(path)["reference"] for path in (schema.cvfm_scores_json, schema.val_calib_scores_json))
    assert read_json(schema.scrc_params_json)["scores"] == fused
    assert read_json(schema.thresholds_json)["scores"] == single
    assert single["fusion"] is None
    weights = sha256_file(schema.cvfm_weights) if mode in FITTED else None
    assert fused["fusion"] == {"description_sha256": sha256_file(schema.cvfm_config_json), "weights_sha256": weights}
    assert fused["model_sha256"] == single["model_sha256"]
    assert (schema.export_dir / "cvfm_weights.pth").exists() == (mode in FITTED)


def test_evaluation_predictor_and_command_give_the_same_numbers(fused_run, command, tmp_path):
    schema = ArtifactSchema(shutil.copytree(fused_run[0].output_dir, tmp_path / "run"))
    code, _, err = command("evaluate", "--bundle", schema.export_dir, "evaluation.n_resamples=100")
    assert code == 0, err
    report, rows = read_json(schema.evaluation_report_json), rows_of(schema, "val_test")
    policies = [(row["name"], row["inference"]) for row in report["policies"]]
    assert report["many_views"]
    assert ("Each frame is a view" in schema.report_html.read_text()) == bool(report["mistakes"])
    mode = fused_run[1]
    singles = [("argmax", "single_view"), ("threshold", "single_view")]
    assert policies == [*singles, ("argmax", mode), ("scrc", mode)]
    predictor = load_bundle(schema.export_dir)
    predictions = predictor.predict(path for path, _ in rows)
    correct = sum(p.decision == label for p, (_, label) in zip(predictions, rows, strict=True))
    assert report["metrics"]["accuracy"]["estimate"] == pytest.approx(correct / len(rows), abs=1e-12)
    code, out, _ = command("predict", "--bundle", schema.export_dir, *(path for path, _ in rows))
    assert code == 0
    printed = [json.loads(line)["probability"] for line in out.splitlines()]
    assert printed == pytest.approx([prediction.probability for prediction in predictions], abs=1e-6)
    alone = [predictor.predict(path)[0].probability for path, _ in rows]
    assert printed == pytest.approx(alone, abs=1e-6)


def test_the_single_view_of_the_bundle_is_phase_1(fused_run):
    schema, _ = fused_run
    plain = load_bundle(schema.export_dir).with_single_view()
    assert plain.inference == "single_view"
    paths = [path for path, _ in rows_of(schema, "val_calib")]
    logits = torch.from_numpy(np.concatenate(list(plain.stream_logits(paths))))
    saved = torch.load(schema.val_calib_logits, weights_only=True)
    torch.testing.assert_close(logits, saved, rtol=1e-5, atol=1e-5)


def test_phase_1_is_the_baseline_of_phase_4c(fused_run):
    schema, _ = fused_run
    fused, alone = (read_json(schema.manifest(phase))["metrics"] for phase in ("phase4c_cvfm", "phase1"))
    assert fused["single_view_val_select_mcc"] == pytest.approx(alone["val_select_mcc"])


def test_a_fusion_below_the_single_view_gives_a_warning(finished_run, tmp_path, command, monkeypatch):
    reject = replace(compare_nll(*[Predictions([0, 1], [0.1, 0.9])] * 2), difference=0.5, bound=0.7, accepted=False)
    monkeypatch.setattr("streetvision.pipeline.gates.compare_nll", lambda *_, **__: reject)
    run = shutil.copytree(finished_run, tmp_path / "run")
    arguments = ["train", f"run_dir={run}", "pipeline.phases=[phase4c_cvfm]"]
    code, _, err = command(*arguments, "phase4c.mode=multiview_mean", *GRID[:2], "phase4c.gate=only_report")
    assert code == 0, err
    assert "phase4c.gate=only_report" in err


def test_without_a_dense_pass_dense_is_refused_and_auto_takes_mil(finished_run, tmp_path, command, monkeypatch):
    def refuse(*_):
        raise ConfigError("this backbone takes one size")

    monkeypatch.setattr(Classifier, "patches_at", refuse)
    schema = ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))
    line = ["train", f"run_dir={schema.output_dir}", "pipeline.phases=[phase4c_cvfm]"]
    code, _, err = command(*line, "phase4c=dense")
    assert code == 2
    assert "set another phase4c.mode than dense" in " ".join(err.split())
    code, _, err = command(*line, "phase4c=auto", *GRID[:2], "phase4c.gate=only_report")
    assert code == 0, err
    assert "phase4c.mode=dense is not compared" in err
    assert read_json(schema.cvfm_config_json)["mode"] == "mil"


def test_the_moved_bundle_predicts_the_same(fused_run, scenes, tmp_path):
    images = sorted(scenes.rglob("*.jpg"))[:6]
    moved = shutil.copytree(fused_run[0].export_dir, tmp_path / "elsewhere")
    assert load_bundle(moved).predict(images) == load_bundle(fused_run[0].export_dir).predict(images)


def test_views_are_cropped_from_the_full_resolution(fused_run):
    predictor = load_bundle(fused_run[0].export_dir)
    image = torch.randint(0, 256, (3, 900, 1600), dtype=torch.uint8)
    views = predictor.prepare(image)
    if fused_run[1] == "dense":
        assert views.pixels.shape == (1, 3, 64, 64)
        assert views.dense.shape == (1, 3, *read_json(fused_run[0].cvfm_config_json)["dense_size"])
        return
    assert views.pixels.shape == (3, 3, 64, 64)
    assert np.array_equal(views.pixels, make_views(image, ViewsConfig(rows=1, columns=2), image_size=(64, 64)).pixels)
    whole, left, right = (view.box for view in predictor.explain(image).views)
    assert (tuple(whole), left.left, right.right) == ((0, 0, 1600, 900), 0, 1600)
    assert right.left < left.right


def test_every_view_is_explained(fused_run, scenes, tmp_path, command):
    """Pictures and JSON, with the same probability as without; the fusion of the view probabilities."""
    schema, mode = fused_run
    image = sorted(scenes.rglob("*.jpg"))[0]
    code, out, _ = command("predict", "--bundle", schema.export_dir, "--explain", tmp_path / "p", image)
    assert code == 0
    prediction = json.loads(out)
    predictor = load_bundle(schema.export_dir)
    assert prediction["probability"] == pytest.approx(predictor.predict(image)[0].probability, abs=1e-6)
    patches = np.prod(read_json(schema.cvfm_config_json)["dense_size"] or [0]) // 32**2
    assert len(prediction["views"]) == (1 + patches if mode == "dense" else 3)
    logits = torch.tensor([view["probability"] for view in prediction["views"]], dtype=torch.float64).logit()
    weights = torch.tensor([view["weight"] for view in prediction["views"]])
    none, some = predictor.logits([predictor.prepare(image)])[0].tolist()
    if mode == "multiview_mean":
        assert logits.mean().item() == pytest.approx(some - none, abs=1e-4)
    if mode != "cvfm_inference":
        # With evidence: 1 for the global view, and 1 for all tiles or patches.
        assert weights.sum().item() == pytest.approx(2 if mode in ("mil", "dense") else 1, abs=1e-4)
    assert [path.name for path in (tmp_path / "p").iterdir()] == [f"0001-{image.stem}.png"]


def test_metrics_have_a_row_for_the_untrained_fusion_and_one_an_epoch(fused_run):
    schema, mode = fused_run
    lines = schema.cvfm_metrics_csv.read_text().splitlines()
    assert len(lines) == (8 if mode == "cvfm_trained" else 2)
    assert lines[1].startswith("0,")


def test_backbone_and_head_equal_those_of_phase1_bit_by_bit(fused_run, finished_run):
    schema = fused_run[0]
    assert schema.phase1_checkpoint.read_bytes() == ArtifactSchema(finished_run).phase1_checkpoint.read_bytes()
    assert (schema.export_dir / "model.pth").read_bytes() == schema.phase1_checkpoint.read_bytes()


def test_val_test_is_refused(fused_run):
    schema, mode = fused_run
    config = compose_config([f"run_dir={schema.output_dir}", *MODES[mode]])
    context = Engine(schema, PHASES, config.sections(), Console()).context(PHASES["phase4c_cvfm"])
    assert context.rows(Split.VAL_CALIB)
    with pytest.raises(LeakageError, match="val_test"):
        context.rows(Split.VAL_TEST)


@only_trained
def test_the_same_command_again_repeats_no_phase(trained, command):
    code, out, _ = command("train", f"run_dir={trained.output_dir}", PHASES_OF_VIEWS, *MODES["cvfm_trained"])
    assert code == 0
    assert out.count("(unchanged)") == 4


@only_trained
def test_another_mode_removes_the_weights_of_the_previous_mode(trained, command):
    code, _, err = command("train", f"run_dir={trained.output_dir}", PHASES_OF_VIEWS, *MODES["multiview_mean"])
    assert code == 0, err
    assert not trained.cvfm_weights.exists()
    assert load_bundle(trained.export_dir).inference == "multiview_mean"
    line = ["train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase5,phase6]", "phase5.folds=2"]
    code, out, err = command(*line, "phase4c=single_view")
    assert code == 0, err
    assert "built-in backbone" not in out + err  # phases that read no setting of the backbone
    assert load_bundle(trained.export_dir).inference == "single_view"


@only_trained
def test_export_refuses_a_fusion_of_other_scores(trained, command):
    """A fusion that was changed after its scores were calibrated, with a valid digest."""
    weights = torch.load(trained.cvfm_weights, weights_only=True)
    torch.save({**weights, "view_scores": weights["view_scores"] + 1}, trained.cvfm_weights)
    update_digest(trained, "phase4c_cvfm", trained.cvfm_weights)
    trained.manifest("phase6").unlink()
    code, _, err = command("train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase6]", *MODES["cvfm_trained"])
    assert code == 2
    assert "do not belong together" in err
    assert "the policy was fitted on" in err


def test_missing_fused_scores_are_an_error(finished_run, tmp_path, command):
    root = shutil.copytree(finished_run, tmp_path / "run")
    code, _, err = command("train", f"run_dir={root}", "pipeline.phases=[phase5]", "phase4c=cvfm")
    assert code == 2
    assert "phase5 needs phase4c_cvfm/val_calib_logits.pt of phase4c_cvfm" in err


@only_trained
def test_the_miner_export_refuses_a_fusion(fused_run, command, tmp_path):
    line = ["export", "--format", "miner", "--bundle", fused_run[0].export_dir, "--out", tmp_path / "miner"]
    code, _, err = command(*line)
    assert (code, "phase4c.mode=cvfm_trained" in err, "phase4c=single_view" in err) == (2, True, True)
    assert not (tmp_path / "miner").exists() or not any((tmp_path / "miner").iterdir())


@pytest.mark.parametrize("fused_run", ["cvfm_trained", "dense"], indirect=True)
def test_another_runtime_predicts_every_view(fused_run, scenes, command, monkeypatch, tmp_path):
    schema, mode = fused_run
    arguments = ["export", "--bundle", schema.export_dir, f"run_dir={schema.output_dir}", "--runtime"]
    code, _, err = command(*arguments, "onnx", "--out", tmp_path / "onnx")
    assert code == 0, err
    original, exported = load_bundle(schema.export_dir), load_bundle(tmp_path / "onnx")
    assert exported.inference == mode
    assert ("dense.onnx" in exported.manifest.files) == (mode == "dense")
    assert "cvfm_weights.safetensors" in exported.manifest.files
    path = sorted((scenes / "images").iterdir())[0]
    expected_prediction, prediction = original.explain(path), exported.explain(path)
    prepared = [exported.prepare(path)]  # with the same pixels, the logits are the same
    np.testing.assert_allclose(exported.logits(prepared), original.logits(prepared), atol=1e-5, rtol=0)
    # Pillow and torchvision round resized pixels differently.
    assert prediction.probability == pytest.approx(expected_prediction.probability, abs=1e-3)
    for name in ("probability", "weight"):
        expected = [getattr(view, name) for view in expected_prediction.views]
        assert [getattr(view, name) for view in prediction.views] == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr("streetvision.pipeline.runtime_export.check_parity", lambda *_, **__: None)
    monkeypatch.setattr("streetvision.pipeline.runtime_export.CALIBRATION_IMAGES", 4)
    code, _, err = command(*arguments, "openvino", "--precision", "int8", "--out", tmp_path / "int8")
    assert code == 0, err
    assert load_bundle(tmp_path / "int8").manifest.runtime.calibration_images == 4


@only_trained
@pytest.mark.parametrize("phases", ["[phase5]", "[phase6]", "[phase5,phase6]", "[phase1,phase2,phase5,phase6]"])
def test_later_phases_use_the_fusion_of_the_run(trained, command, phases):
    """A fusion that the run has is neither left out of the calibration nor of the bundle."""
    line = ["train", f"run_dir={trained.output_dir}", "phase5.folds=2"]
    code, _, err = command(*line, "pipeline.phases=[phase5,phase6]", "phase4c=single_view")
    assert code == 0, err
    settings = TINY_MODEL if "phase1" in phases else []
    code, out, err = command(*line, f"pipeline.phases={phases}", *settings)
    assert code == 0, err
    assert "fusion of this run" in out
    assert read_json(trained.scrc_params_json)["scores"] == read_json(trained.cvfm_scores_json)["reference"]
    if "phase6" in phases:
        assert load_bundle(trained.export_dir).inference == "cvfm_trained"


@only_trained
def test_an_export_alone_keeps_the_settings_of_the_calibration(trained, command):
    chosen = ["phase5.folds=2", "phase5.method=platt", "phase5.risk.alpha=0.02"]

    def exported(phases, *settings):
        code, _, err = command("train", f"run_dir={trained.output_dir}", f"pipeline.phases={phases}", *settings)
        assert code in (0, 3), err  # the tiny model may predict one class
        params = read_json(trained.scrc_params_json)["scrc_params"]
        assert (params["method"], params["risk_control"]["alpha"]) == ("platt", 0.02)
        return load_bundle(trained.export_dir).inference, trained.manifest("phase5").stat().st_mtime_ns

    _, single = exported("[phase5,phase6]", "phase4c=single_view", *chosen)
    inference, fused = exported("[phase6]")  # calibrates the fusion, with the settings of the single view
    assert (inference, fused > single) == ("cvfm_trained", True)
    assert exported("[phase6]", "phase6.archive=true") == ("cvfm_trained", fused)
    assert trained.bundle_archive.is_file()
    assert exported("[phase6]", "phase4c=single_view")[0] == "single_view"


@only_trained
def test_another_fusion_than_that_of_the_run_needs_phase_4c(trained, command):
    line = ["train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase5,phase6]", "phase5.folds=2"]
    for settings in (["phase4c=dense"], ["phase4c=cvfm", "phase4c.epochs=7"], ["phase4c=cvfm", "phase4c.gate=on"]):
        code, _, err = command(*line, *settings)
        assert (code, "phase4c_cvfm" in err) == (2, True), err
    code, out, err = command(*line, "phase4c=cvfm", "phase4c.epochs=6")
    assert code == 0, err
    assert out.count("(unchanged)") == 2


@only_trained
def test_a_new_model_gets_a_new_fusion_also_after_a_failure(trained, command, monkeypatch):
    before = sha256_file(trained.cvfm_weights)
    line = ["train", f"run_dir={trained.output_dir}", *TINY_MODEL, "training.loss.name=weighted_cross_entropy"]
    code, _, err = command(*line, "pipeline.phases=[phase1]")
    assert code == 0, err
    code, _, err = command(*line, "pipeline.phases=[phase5]")
    assert (code, "pipeline.phases=[phase4c_cvfm,phase5]" in err.replace("\n", "")) == (2, True), err
    with monkeypatch.context() as patch:
        patch.setattr("streetvision.pipeline.steps.train_cvfm.run", lambda _: [][0])
        with pytest.raises(IndexError):
            command(*line)
    code, _, err = command(*line)
    assert code == 0, err
    assert sha256_file(trained.cvfm_weights) != before
    assert load_bundle(trained.export_dir).inference == "cvfm_trained"


@only_trained
def test_the_summary_lists_what_the_model_contains(trained, command):
    line = ["train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase5,phase6]", "phase5.folds=2"]
    _, out, _ = command(*line)
    assert str(trained.cvfm_config_json) in out
    _, out, _ = command(*line, "phase4c=single_view")
    assert str(trained.cvfm_config_json) not in out
    assert str(trained.export_dir) in out
    _, out, _ = command(
        "train",
        f"run_dir={trained.output_dir}",
        *TINY_MODEL,
        "pipeline.phases=[phase1]",
        "training.loss.name=weighted_cross_entropy",
    )
    assert str(trained.phase1_checkpoint) in out
    assert str(trained.export_dir) not in out

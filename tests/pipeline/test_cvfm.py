"""Phase 4c and what follows from it, for every mode that fuses views: through the command line, on a tiny run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import LeakageError
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import read_json, sha256_file
from streetvision.io.manifests import file_digest
from streetvision.models.config import ViewsConfig
from streetvision.models.multi_view import make_views
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine
from streetvision.pipeline.phases import PHASES

PHASES_OF_VIEWS = "pipeline.phases=[phase4c_cvfm,phase5,phase6]"
CUT = ["phase4c.views.rows=1", "phase4c.views.columns=2", "phase5.folds=2"]
MODES = {
    "multiview_mean": ["phase4c.mode=multiview_mean", *CUT],
    "cvfm_inference": ["phase4c.mode=cvfm_inference", "phase4c.inference.mode=noisy_or", *CUT],
    "cvfm_trained": ["phase4c=cvfm", *CUT, "phase4c.epochs=6", "phase4c.batch_size=16", "phase4c.learning_rate=0.01"],
}


@pytest.fixture(scope="module", params=MODES)
def fused_run(request, finished_run, tmp_path_factory):
    """A run in which phase 4c was asked for, and its mode."""
    from streetvision.cli.app import main

    root = shutil.copytree(finished_run, tmp_path_factory.mktemp("fused") / "run")
    with pytest.raises(SystemExit) as stop:
        main(["train", f"run_dir={root}", PHASES_OF_VIEWS, *MODES[request.param]])
    assert not stop.value.code
    return ArtifactSchema(root), request.param


@pytest.fixture
def trained(fused_run, tmp_path):
    """A copy of the run with the trained fusion, to break."""
    return ArtifactSchema(shutil.copytree(fused_run[0].output_dir, tmp_path / "run"))


only_trained = pytest.mark.parametrize("fused_run", ["cvfm_trained"], indirect=True)


def rows_of(schema, split):
    splits = read_json(schema.splits_json)
    return [(Path(splits["root"]) / row["path"], row["label"]) for row in splits["rows"] if row["split"] == split]


def reseal(schema, phase, path):
    """Let the manifest vouch for a file that was tampered with."""
    manifest = read_json(schema.manifest(phase))
    manifest["outputs"][path.relative_to(schema.output_dir).as_posix()] = file_digest(path).model_dump()
    schema.manifest(phase).write_text(json.dumps(manifest))


def test_what_was_fused_and_calibrated_is_what_ships(fused_run):
    schema, mode = fused_run
    predictor = load_bundle(schema.export_dir)
    assert predictor.inference == mode
    saved = torch.load(schema.cvfm_logits, weights_only=True)
    rows = rows_of(schema, "val_calib")
    shipped = torch.cat(list(predictor.stream_logits(path for path, _ in rows)))
    torch.testing.assert_close(shipped, saved, rtol=1e-5, atol=1e-5)
    assert torch.load(schema.cvfm_labels, weights_only=True).tolist() == [label for _, label in rows]
    assert not torch.allclose(saved, torch.load(schema.val_calib_logits, weights_only=True), atol=1e-3)


def test_policies_know_which_scores_are_theirs(fused_run):
    schema, mode = fused_run
    fused, single = (read_json(path)["reference"] for path in (schema.cvfm_scores_json, schema.val_calib_scores_json))
    assert read_json(schema.scrc_params_json)["scores"] == fused
    assert read_json(schema.thresholds_json)["scores"] == single
    assert single["fusion"] is None
    weights = sha256_file(schema.cvfm_weights) if mode == "cvfm_trained" else None
    assert fused["fusion"] == {"description_sha256": sha256_file(schema.cvfm_config_json), "weights_sha256": weights}
    assert fused["model_sha256"] == single["model_sha256"]
    assert (schema.export_dir / "cvfm_weights.pth").exists() == (mode == "cvfm_trained")


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
    answers = predictor.predict(path for path, _ in rows)
    right = sum(answer.decision == label for answer, (_, label) in zip(answers, rows, strict=True))
    assert report["metrics"]["accuracy"]["estimate"] == pytest.approx(right / len(rows), abs=1e-12)
    code, out, _ = command("predict", "--bundle", schema.export_dir, *(path for path, _ in rows))
    assert code == 0
    printed = [json.loads(line)["probability"] for line in out.splitlines()]
    assert printed == pytest.approx([answer.probability for answer in answers], abs=1e-6)
    alone = [predictor.predict(path)[0].probability for path, _ in rows]
    assert printed == pytest.approx(alone, abs=1e-6)


def test_the_single_view_beside_it_is_phase_1s(fused_run):
    schema, _ = fused_run
    plain = load_bundle(schema.export_dir).with_single_view()
    assert plain.inference == "single_view"
    logits = torch.cat(list(plain.stream_logits(path for path, _ in rows_of(schema, "val_calib"))))
    saved = torch.load(schema.val_calib_logits, weights_only=True)
    torch.testing.assert_close(logits, saved, rtol=1e-5, atol=1e-5)


def test_phase_1_is_judged_beside_it(fused_run):
    schema, _ = fused_run
    fused, alone = (read_json(schema.manifest(phase))["metrics"] for phase in ("phase4c_cvfm", "phase1"))
    assert fused["single_view_val_select_mcc"] == pytest.approx(alone["val_select_mcc"])


def test_a_fusion_that_loses_to_the_whole_image_is_warned_of(finished_run, tmp_path, command, monkeypatch):
    monkeypatch.setattr("streetvision.pipeline.steps.train_cvfm._without_views", lambda *_: 1.0)
    run = shutil.copytree(finished_run, tmp_path / "run")
    asked = ["train", f"run_dir={run}", "pipeline.phases=[phase4c_cvfm]"]
    code, out, err = command(*asked, "phase4c.mode=multiview_mean", *CUT[:2])
    assert code == 0, err
    assert "and the single view 1.000: leave out phase4c_cvfm" in out


def test_the_moved_bundle_looks_the_same_way(fused_run, scenes, tmp_path):
    images = sorted(scenes.rglob("*.jpg"))[:6]
    moved = shutil.copytree(fused_run[0].export_dir, tmp_path / "elsewhere")
    assert load_bundle(moved).predict(images) == load_bundle(fused_run[0].export_dir).predict(images)


def test_views_are_cut_from_the_full_resolution(fused_run):
    predictor = load_bundle(fused_run[0].export_dir)
    image = torch.randint(0, 256, (3, 900, 1600), dtype=torch.uint8)
    views = predictor.prepare(image)
    assert views.pixels.shape == (3, 3, 64, 64)
    assert torch.equal(views.pixels, make_views(image, ViewsConfig(rows=1, columns=2), image_size=64).pixels)
    whole, left, right = (view.box for view in predictor.explain(image).views)
    assert (tuple(whole), left.left, right.right) == ((0, 0, 1600, 900), 0, 1600)
    assert right.left < left.right


def test_every_view_is_explained(fused_run, scenes, tmp_path, command):
    """Pictures and JSON, with the same probability as without; what the views said is what was fused."""
    schema, mode = fused_run
    image = sorted(scenes.rglob("*.jpg"))[0]
    code, out, _ = command("predict", "--bundle", schema.export_dir, "--explain", tmp_path / "p", image)
    assert code == 0
    answer = json.loads(out)
    predictor = load_bundle(schema.export_dir)
    assert answer["probability"] == pytest.approx(predictor.predict(image)[0].probability, abs=1e-6)
    assert len(answer["views"]) == 3
    said = torch.tensor([view["probability"] for view in answer["views"]], dtype=torch.float64).logit()
    weights = torch.tensor([view["weight"] for view in answer["views"]])
    none, some = predictor.logits(default_collate([predictor.prepare(image)]))[0].tolist()
    if mode == "multiview_mean":
        assert said.mean().item() == pytest.approx(some - none, abs=1e-4)
    if mode != "cvfm_inference":
        assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    assert [path.name for path in (tmp_path / "p").iterdir()] == [f"0001-{image.stem}.png"]


def test_metrics_have_a_row_for_the_untrained_fusion_and_one_an_epoch(fused_run):
    schema, mode = fused_run
    lines = schema.cvfm_metrics_csv.read_text().splitlines()
    assert len(lines) == (8 if mode == "cvfm_trained" else 2)
    assert lines[1].startswith("0,")


def test_backbone_and_head_are_phase_1s_to_the_byte(fused_run, finished_run):
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
def test_the_same_line_again_finds_nothing_to_do(trained, command):
    code, out, _ = command("train", f"run_dir={trained.output_dir}", PHASES_OF_VIEWS, *MODES["cvfm_trained"])
    assert code == 0
    assert out.count("(unchanged)") == 4


@only_trained
def test_another_mode_leaves_no_weights_of_the_one_before(trained, command):
    code, _, err = command("train", f"run_dir={trained.output_dir}", PHASES_OF_VIEWS, *MODES["multiview_mean"])
    assert code == 0, err
    assert not trained.cvfm_weights.exists()
    assert load_bundle(trained.export_dir).inference == "multiview_mean"
    code, _, err = command(
        "train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase5,phase6]", "phase5.folds=2"
    )
    assert code == 0, err
    assert load_bundle(trained.export_dir).inference == "single_view"


@only_trained
def test_export_refuses_a_fusion_of_other_scores(trained, command):
    """A fusion that was changed after its scores were calibrated, sealed as if it were whole."""
    weights = torch.load(trained.cvfm_weights, weights_only=True)
    torch.save({**weights, "view_scores": weights["view_scores"] + 1}, trained.cvfm_weights)
    reseal(trained, "phase4c_cvfm", trained.cvfm_weights)
    trained.manifest("phase6").unlink()
    code, _, err = command("train", f"run_dir={trained.output_dir}", "pipeline.phases=[phase6]", *MODES["cvfm_trained"])
    assert code == 2
    assert "the chain does not close" in err
    assert "the policy was fitted on" in err


def test_fused_scores_that_are_not_there_are_asked_for(finished_run, tmp_path, command):
    root = shutil.copytree(finished_run, tmp_path / "run")
    code, _, err = command("train", f"run_dir={root}", "pipeline.phases=[phase5]", "phase4c=cvfm")
    assert code == 2
    assert "phase5 needs phase4c_cvfm/val_calib_logits.pt of phase4c_cvfm" in err


@only_trained
def test_the_stock_miner_cannot_take_a_fusion_and_the_export_says_so(fused_run, command, tmp_path):
    line = ["export", "--format", "miner", "--bundle", fused_run[0].export_dir, "--out", tmp_path / "miner"]
    code, _, err = command(*line)
    assert (code, "fuses many views" in err) == (2, True)
    assert not (tmp_path / "miner").exists() or not any((tmp_path / "miner").iterdir())


@only_trained
def test_another_runtime_sees_every_view(fused_run, scenes, command, monkeypatch, tmp_path):
    schema, _ = fused_run
    asked = ["export", "--bundle", schema.export_dir, f"run_dir={schema.output_dir}", "--runtime"]
    code, _, err = command(*asked, "onnx", "--out", tmp_path / "onnx")
    assert code == 0, err
    ours, theirs = load_bundle(schema.export_dir), load_bundle(tmp_path / "onnx")
    assert theirs.inference == "cvfm_trained"
    path = sorted((scenes / "images").iterdir())[0]
    one, other = ours.explain(path), theirs.explain(path)
    assert other.probability == pytest.approx(one.probability, abs=1e-6)
    for name in ("probability", "weight"):
        expected = [getattr(view, name) for view in one.views]
        assert [getattr(view, name) for view in other.views] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr("streetvision.pipeline.runtime_export.check_parity", lambda *_, **__: None)
    monkeypatch.setattr("streetvision.pipeline.runtime_export.CALIBRATION_IMAGES", 4)
    code, _, err = command(*asked, "openvino", "--precision", "int8", "--out", tmp_path / "int8")
    assert code == 0, err
    assert load_bundle(tmp_path / "int8").manifest.runtime.calibration_images == 4

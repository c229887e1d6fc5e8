"""From images to an evaluated bundle, on tiny data, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.split_contracts import MAY_OPEN
from streetvision.io.atomic import read_json
from streetvision.io.manifests import file_digest
from tests.conftest import TINY_MODEL


def probabilities(bundle, images):
    return [prediction.probability for prediction in load_bundle(bundle).predict(images)]


@pytest.fixture
def images(scenes):
    return sorted(scenes.rglob("*.jpg"))[:12]


@pytest.fixture
def run_copy(finished_run, tmp_path):
    return ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))


def test_every_phase_writes_its_artifacts(finished_run):
    schema = ArtifactSchema(finished_run)
    names = (
        "splits_json data_report_json phase1_checkpoint phase1_last_checkpoint model_config_json "
        "phase1_metrics_csv val_calib_logits val_calib_labels val_calib_scores_json thresholds_json "
        "threshold_sweep_csv mcc_curve_plot scrc_params_json scrc_params_pkl "
        "reliability_before_plot reliability_plot risk_coverage_plot bundle_json "
        "evaluation_report_json report_html "
    )
    for name in names.split():
        assert schema.path(name).stat().st_size > 0, name
    only_by_name = {"export_runtime", "phase4a_explora", "phase4c_cvfm", "phase5_maccal", "evaluate_data", "reward"}
    assert all(schema.manifest(phase).is_file() for phase in MAY_OPEN if phase not in only_by_name)
    assert schema.threshold_curve.is_file()


def test_the_moved_bundle_predicts_the_same_numbers(run_copy, images, tmp_path):
    before = probabilities(run_copy.export_dir, images)
    moved = tmp_path / "elsewhere" / "bundle"
    moved.parent.mkdir()
    run_copy.export_dir.rename(moved)
    shutil.rmtree(run_copy.output_dir)
    assert probabilities(moved, images) == before
    assert len(set(before)) > 1


def test_the_calibrated_model_is_exported(finished_run):
    """The saved logits of VAL_CALIB are those of the exported model."""
    schema = ArtifactSchema(finished_run)
    splits = read_json(schema.splits_json)
    rows = [row for row in splits["rows"] if row["split"] == "val_calib"]
    predictor = load_bundle(schema.export_dir)
    prepared = [predictor.prepare(Path(splits["root"]) / row["path"]) for row in rows]
    saved = torch.load(schema.val_calib_logits, weights_only=True)
    torch.testing.assert_close(torch.from_numpy(predictor.logits(prepared)), saved, rtol=1e-5, atol=1e-5)
    labels = torch.load(schema.val_calib_labels, weights_only=True)
    assert labels.tolist() == [row["label"] for row in rows]


def test_the_evaluation_counts_the_predictions_of_the_bundle(finished_run):
    schema = ArtifactSchema(finished_run)
    report = read_json(schema.evaluation_report_json)
    splits = read_json(schema.splits_json)
    rows = [row for row in splits["rows"] if row["split"] == "val_test"]
    predictions = load_bundle(schema.export_dir).predict([Path(splits["root"]) / row["path"] for row in rows])
    accuracy = np.mean([p.decision == row["label"] for p, row in zip(predictions, rows, strict=True)])
    assert report["metrics"]["accuracy"]["estimate"] == pytest.approx(accuracy, abs=1e-12)


def test_a_second_run_finds_nothing_to_do(run_copy, scenes, command):
    code, out, _ = command("train", f"data.root={scenes}", f"run_dir={run_copy.output_dir}", *TINY_MODEL)
    assert code == 0
    assert out.count("(unchanged)") == 5


def test_the_same_seed_gives_the_same_bundle(finished_run, scenes, tmp_path, command):
    code, _, _ = command("train", f"data.root={scenes}", f"run_dir={tmp_path / 'again'}", *TINY_MODEL)
    assert code == 0
    first, again = (ArtifactSchema(root).bundle_json.read_bytes() for root in (finished_run, tmp_path / "again"))
    assert first == again


def test_one_phase_runs_alone_in_a_run_that_has_the_rest(run_copy, command):
    before = run_copy.phase1_checkpoint.read_bytes()
    code, out, _ = command(
        "train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase2]", "phase2.n_thresholds=100"
    )
    assert code == 0
    assert "grid of 100" in out
    assert len(run_copy.threshold_sweep_csv.read_text().splitlines()) == 101
    assert run_copy.phase1_checkpoint.read_bytes() == before


def test_a_threshold_can_ship_without_calibration(run_copy, command, images):
    arguments = ["train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase6]"]
    code, out, _ = command(*arguments)
    assert code == 0
    assert run_copy.thresholds_json.name not in out, "phase 5 has another threshold"
    code, out, _ = command(*arguments, "phase6.policy=threshold")
    assert code == 0
    assert run_copy.thresholds_json.name in out
    predictor = load_bundle(run_copy.export_dir)
    assert predictor.manifest.policy_type == "threshold"
    assert not (run_copy.export_dir / "scrc_params.json").exists()
    threshold = read_json(run_copy.thresholds_json)["threshold"]
    for prediction in predictor.predict(images):
        assert prediction.decision == (prediction.probability >= threshold)


def test_the_archive_is_the_same_bytes_twice(run_copy, command):
    archives = []
    for _ in range(2):
        run_copy.manifest("phase6").unlink()
        settings = ["pipeline.phases=[phase6]", "phase6.archive=true"]
        assert command("train", f"run_dir={run_copy.output_dir}", *settings)[0] == 0
        archives.append(run_copy.bundle_archive.read_bytes())
    assert archives[0] == archives[1]


def test_without_its_gate_the_full_mode_trains_everything(scenes, tmp_path, command):
    schema = ArtifactSchema(tmp_path / "full")
    sizes = ["training=full", "training.gate=off", "training.epochs=1", "pipeline.phases=[phase1]"]
    code, out, err = command("train", f"data.root={scenes}", f"run_dir={schema.output_dir}", *TINY_MODEL, *sizes)
    assert code == 0, err
    assert "full, epoch 1 of 1" in out
    fresh = ArtifactSchema(tmp_path / "fresh")
    frozen = [*TINY_MODEL, "pipeline.phases=[phase1]"]
    assert command("train", f"data.root={scenes}", f"run_dir={fresh.output_dir}", *frozen)[0] == 0
    trained, initial = (torch.load(s.phase1_checkpoint, weights_only=True) for s in (schema, fresh))
    moved = [name for name in trained if name.startswith("backbone") and not torch.equal(trained[name], initial[name])]
    assert any("q_proj" in name for name in moved)


def test_multi_objective_writes_its_front_and_another_method_removes_it(run_copy, command):
    again = ["train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase5]", "phase5.folds=2"]
    code, out, err = command(*again, "phase5.method=multi_objective")
    assert code == 0, err
    assert "cannot be certified with" in out
    rows = run_copy.pareto_front_csv.read_text().splitlines()
    assert rows[0] == "weights,nll,ece,mcc_loss,fnr,on_front,selected"
    assert sum(row.endswith("true,true") for row in rows) == 1
    assert run_copy.pareto_front_plot.is_file()
    assert command(*again)[0] == 0
    assert not run_copy.pareto_front_csv.exists()


@pytest.mark.parametrize(("threshold", "only"), [(1.0, "None"), (0.0, "Roadwork")])
def test_a_policy_of_one_class_ends_with_exit_code_3(run_copy, command, monkeypatch, threshold, only):
    overrides = ["train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase5]", "phase5.folds=3"]
    with monkeypatch.context() as patch:
        patch.setattr("streetvision.calibration.scrc.bagged_threshold", lambda *_, **__: threshold)
        code, out, err = command(*overrides)
    assert code == 3, err
    assert f"predicts {only} for every image of VAL_CALIB" in " ".join((out + err).split())
    assert command(*overrides)[0] == 3, "an unchanged phase"
    assert command(*overrides, "phase5.seed=1")[0] == 0


def test_the_summary_lists_ensemble_members_by_weight(run_copy, command):
    overrides = ["pipeline.phases=[phase5]", "phase5.folds=2", "phase5.method=ensemble"]
    code, out, err = command("train", f"run_dir={run_copy.output_dir}", *overrides)
    assert code == 0, err
    weights = read_json(run_copy.scrc_params_json)["scrc_params"]["ensemble_weights"]
    members = [f"{weights[name]:.0%} {name}" for name in sorted(weights, key=weights.__getitem__, reverse=True)]
    assert f"ensemble of {', '.join(members)}; cross-fitted NLL" in out


def test_a_head_retrained_for_calibration_is_calibrated_and_exported(run_copy, command, images):
    again = ["train", f"run_dir={run_copy.output_dir}", "phase5.folds=2"]
    code, _, err = command(*again, "pipeline.phases=[phase5]", "phase5.method=mac_cal")
    assert code == 2
    assert "phase5 needs phase5_maccal/val_calib_logits.pt of phase5_maccal" in err
    phases = "pipeline.phases=[phase5_maccal,phase5,phase6]"
    code, out, err = command(*again, phases, "phase5.method=mac_cal", "mac_cal.epochs=3")
    assert code == 0, err
    assert "mac_cal; VAL_CALIB NLL" in out
    policy = read_json(run_copy.scrc_params_json)
    assert policy["scores"] == read_json(run_copy.mac_cal_scores_json)["reference"]
    assert {"none", "temperature", "ensemble", "mac_cal"} <= {c["name"] for c in policy["scrc_params"]["candidates"]}
    assert (run_copy.export_dir / "model.pth").read_bytes() == run_copy.mac_cal_checkpoint.read_bytes()
    trained, original = (
        torch.load(p, weights_only=True) for p in (run_copy.mac_cal_checkpoint, run_copy.phase1_checkpoint)
    )
    assert {name.split(".")[0] for name in trained if not torch.equal(trained[name], original[name])} == {"head"}
    assert command("evaluate", "--bundle", run_copy.export_dir, "evaluation.mode=quick")[0] == 0
    settings = read_json(run_copy.evaluation_report_json)["settings"]
    assert set(settings) == {"data", "phase1", "phase5_maccal", "phase5", "phase6"}
    assert settings["phase5_maccal"]["MacCalConfig"]["epochs"] == 3
    assert command(*again, "pipeline.phases=[phase5,phase6]")[0] == 0
    assert (run_copy.export_dir / "model.pth").read_bytes() == run_copy.phase1_checkpoint.read_bytes()


def write_policy(run, policy):
    """Write a policy as if phase 5 had made it."""
    run.scrc_params_json.write_text(json.dumps(policy))
    manifest = read_json(run.manifest("phase5"))
    manifest["outputs"]["phase5_scrc/scrc_params.json"] = file_digest(run.scrc_params_json).model_dump()
    run.manifest("phase5").write_text(json.dumps(manifest))


def test_a_policy_of_an_older_version_is_refused(run_copy, command):
    write_policy(run_copy, read_json(run_copy.scrc_params_json) | {"schema_version": 1})
    code, _, err = command("train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase6]")
    assert code == 2
    assert "scrc.schema_version: Input should be 2" in err


def test_policies_carry_the_digest_of_the_scores_they_were_fitted_on(finished_run):
    schema = ArtifactSchema(finished_run)
    reference = read_json(schema.val_calib_scores_json)["reference"]
    assert read_json(schema.thresholds_json)["scores"] == reference
    assert read_json(schema.scrc_params_json)["scores"] == reference
    assert read_json(schema.bundle_json)["files"]["model.pth"]["sha256"] == reference["model_sha256"]


def test_export_refuses_a_policy_of_another_model(run_copy, command):
    """A policy with valid digests that was fitted on the scores of another model."""
    policy = read_json(run_copy.scrc_params_json)
    policy["scores"]["model_sha256"] = "0" * 64
    write_policy(run_copy, policy)
    code, _, err = command("train", f"run_dir={run_copy.output_dir}", "pipeline.phases=[phase6]")
    assert code == 2
    assert "do not belong together" in err


def test_a_file_of_settings_is_kept_when_the_run_already_has_its_data(run_copy, tmp_path, command):
    file = tmp_path / "few.yaml"
    file.write_text("phase2: {n_thresholds: 50}\npipeline: {phases: [phase2]}\n")
    code, out, _ = command("train", "--config", file, f"run_dir={run_copy.output_dir}")
    assert code == 0
    assert "grid of 50" in out


@pytest.mark.long
def test_the_whole_chain_on_real_images(real_data, tmp_path, command, monkeypatch):
    """DeiT-tiny on a subset of the traffic signs, grouped by track: the documented command, on fewer rows."""
    monkeypatch.setattr("streetvision.pipeline.runtime_export.SMALLEST_OFFERED", float("inf"))  # has a test of its own
    source = real_data / "gtsrb_roadwork"
    lines = (source / "index.csv").read_text().splitlines()
    tracks = sorted({line.split(",")[2] for line in lines[1:]})[::2]
    subset_rows = [line for line in lines[1:] if line.split(",")[2] in tracks][::6]
    subset = tmp_path / "subset.csv"
    subset.write_text("\n".join(["path,label,group", *(f"{source}/{line}" for line in subset_rows)]))
    settings = [
        f"data.root={subset}",
        "data.class_names=[no_roadwork,roadwork]",
        "model=deit_tiny",
        f"model.backbone.weights={real_data / 'deit_tiny_patch16_224' / 'model.safetensors'}",
        f"run_dir={tmp_path / 'run'}",
        "phase5.folds=2",
        "model.image_tokens=64",
        "training.budget_minutes=0",
    ]
    code, out, err = command("train", *settings)
    assert code == 0, err
    assert f"by {len(tracks)} groups" in out
    code, _, err = command("evaluate", "--bundle", tmp_path / "run" / "export", "evaluation.n_resamples=100")
    assert code == 0, err
    report = read_json(tmp_path / "run" / "evaluation" / "evaluation_report.json")
    assert report["grouped"]
    assert report["out_of_fold"]["metrics"]["roc_auc"]["estimate"] > 0.6  # VAL_TEST has few tracks

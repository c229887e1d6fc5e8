"""The command lines of the specification, as they are typed but for the run folder and the size.

They run in the order of the specification, in one run folder, each on what the lines before it left there.
"""

import csv
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from streetvision import load_bundle
from streetvision.cli.app import main
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.policies import ScrcPolicy
from streetvision.io.atomic import read_json
from streetvision.io.validators import BundleValidator, PolicyValidator
from tests.conftest import TINY_ADAPTATION, TINY_MODEL

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIZE = [
    *(setting for setting in TINY_MODEL if not setting.startswith("training")),
    *TINY_ADAPTATION,
]
ORDER = "phase4a_explora,phase1,phase2,phase4c_cvfm,phase5,phase6"
TRAIN_LINES = {
    66: "pipeline.phases=[phase1] training.epochs=1 training.mixed_precision.enabled=true",
    69: "pipeline.phases=[phase1] training.loss.name=focal training.epochs=1",
    70: "pipeline.phases=[phase1] training.gradient_accumulation_steps=4 training.epochs=1",
    35: "pipeline.phases=[phase2] phase2.n_thresholds=100",
    88: "pipeline.phases=[phase4a_explora] phase4a.num_epochs=5",
    95: "pipeline.phases=[phase4a_explora,phase1]",
    126: "pipeline.phases=[phase4c_cvfm] phase4c.epochs=1",
    139: "pipeline.phases=[phase4a_explora,phase1,phase4c_cvfm]",
    157: "pipeline.phases=[phase5]",
    172: "pipeline.phases=[phase6]",
    194: f"pipeline.phases=[{ORDER}]",
}
METHODS = ("isotonic", "smooth_isotonic", "temperature", "platt", "beta", "ensemble")


def run_command(line, schema, scenes, capsys=None):
    """Run `python scripts/NAME.py ...`, with the run folder and the size; return (exit code, what it prints)."""
    program, script, *arguments = shlex.split(line)
    assert program == "python"
    assert (SCRIPTS / Path(script).name).is_file()
    if script == "scripts/train_cli_v2.py":
        # Sizes first: what the specification sets wins.
        epochs = [] if "phase4a.num_epochs" in line or "phase4a_explora" not in line else ["phase4a.num_epochs=1"]
        gates = [f"{phase[:7]}.gate=off" for phase in ("phase4a_explora", "phase4c_cvfm") if phase in line]
        size = [setting for setting in [*SIZE, *epochs, *gates] if setting.partition("=")[0] not in line]
        arguments = ["train", *size, f"data.root={scenes}", f"run_dir={schema.output_dir}", *arguments]
    else:
        arguments = ["evaluate", *arguments, "evaluation.n_resamples=100"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


@pytest.fixture(scope="module")
def typed_run(scenes, tmp_path_factory):
    """The run folder after all lines, with the exit code of each, and copies of files that later lines replace."""
    schema, kept = ArtifactSchema(tmp_path_factory.mktemp("runs") / "typed"), tmp_path_factory.mktemp("kept")
    codes = {}
    for task, line in TRAIN_LINES.items():
        codes[task] = run_command(f"python scripts/train_cli_v2.py {line}", schema, scenes)
        if task == 35:
            shutil.copytree(schema.phase2_dir, kept / "phase2")
        if task == 88:
            shutil.copy(schema.explora_metrics_csv, kept / "explora.csv")
        if task == 126:
            shutil.copy(schema.cvfm_config_json, kept / "cvfm.json")
    bundle = schema.export_dir / "bundle.json"
    codes[191] = run_command(f"python scripts/evaluate_cli.py --bundle {bundle}", schema, scenes)
    return schema, codes, kept


@pytest.mark.slow
@pytest.mark.spec(*TRAIN_LINES, 191)
def test_every_line_ends_without_an_error(typed_run):
    _, codes, _ = typed_run
    # Exit code 3 says that a tiny model predicts one class only.
    assert {task: code for task, code in codes.items() if code not in (0, 3)} == {}


@pytest.mark.slow
@pytest.mark.spec(30, 31, 32, 33, 34, 35)
def test_phase_2_writes_threshold_curve_plot_and_manifest(typed_run):
    _, _, kept = typed_run
    policy = read_json(kept / "phase2" / "thresholds.json")
    assert policy["policy_type"] == "threshold"
    assert {"threshold", "metrics"} <= policy.keys()
    with (kept / "phase2" / "threshold_sweep.csv").open() as file:
        header, *rows = csv.reader(file)
    assert (header, len(rows)) == (["threshold", "mcc", "tp", "tn", "fp", "fn"], 100)
    assert (kept / "phase2" / "mcc_curve.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(kept / "phase2" / "manifest.json")["outputs"]


@pytest.mark.slow
@pytest.mark.spec(56, 67)
def test_phase_1_writes_the_logits_of_val_calib(typed_run):
    schema, _, _ = typed_run
    logits = torch.load(schema.output_dir / "phase1" / "val_calib_logits.pt", weights_only=True)
    labels = torch.load(schema.output_dir / "phase1" / "val_calib_labels.pt", weights_only=True)
    assert logits.shape == (len(labels), 2)


@pytest.mark.slow
@pytest.mark.spec(78, 87, 89, 92, 100, 101)
def test_phase_4a_lowers_its_loss_and_writes_the_backbone(typed_run):
    schema, _, kept = typed_run
    with (kept / "explora.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[1]  # row 0 is before the first step
    assert torch.load(schema.output_dir / "phase4a_explora" / "explora_checkpoint.pth", weights_only=True)
    manifest = read_json(schema.manifest("phase4a_explora"))
    assert {"git_sha", "config_sha256", "metrics"} <= manifest.keys()


@pytest.mark.slow
@pytest.mark.spec(119, 121, 123, 124, 127, 128, 132, 165)
def test_the_trained_fusion_is_exported_and_used(typed_run):
    schema, _, kept = typed_run
    assert read_json(kept / "cvfm.json")["mode"] == "cvfm_trained"
    assert schema.cvfm_weights.is_file()
    assert schema.manifest("phase4c_cvfm").is_file()
    predictor = load_bundle(schema.export_dir)
    assert predictor.inference == "mil"  # the default without a setting of the trained fusion
    assert (schema.export_dir / "cvfm_weights.pth").is_file()


@pytest.mark.slow
@pytest.mark.spec(149, 150, 151, 156, 158)
def test_phase_5_writes_a_valid_policy(typed_run):
    schema, _, _ = typed_run
    policy = PolicyValidator().validate(schema.scrc_params_json)
    assert isinstance(policy, ScrcPolicy)
    content = read_json(schema.scrc_params_json)
    assert content["policy_type"] == "scrc"
    assert {"ece_before", "ece_after"} <= content["metrics"].keys()
    assert schema.scrc_params_pkl.is_file()
    assert schema.manifest("phase5").is_file()


@pytest.mark.slow
@pytest.mark.spec(143, 144, 145, 146, 147, 148, 159)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_calibration(typed_run, scenes, tmp_path, method):
    schema = ArtifactSchema(shutil.copytree(typed_run[0].output_dir, tmp_path / "run"))
    line = f"python scripts/train_cli_v2.py pipeline.phases=[phase5] phase5.method={method}"
    assert run_command(line, schema, scenes) == 0
    assert read_json(schema.scrc_params_json)["scrc_params"]["method"] == method


@pytest.mark.slow
@pytest.mark.spec(200)
def test_mac_cal(typed_run, scenes, tmp_path):
    schema = ArtifactSchema(shutil.copytree(typed_run[0].output_dir, tmp_path / "run"))
    phases = "pipeline.phases=[phase5_maccal,phase5] phase5.method=mac_cal"
    assert run_command(f"python scripts/train_cli_v2.py {phases}", schema, scenes) == 0
    assert read_json(schema.scrc_params_json)["scrc_params"]["method"] == "mac_cal"


@pytest.mark.slow
@pytest.mark.spec(162, 163, 164, 166, 167, 171, 173, 174)
def test_phase_6_writes_a_valid_bundle_that_predicts(typed_run, scenes, command, tmp_path):
    schema, _, _ = typed_run
    manifest = BundleValidator().validate(schema.export_dir / "bundle.json")
    assert manifest.policy.policy_type == "scrc"
    assert {"model.pth", "scrc_params.json", "scrc_params.pkl"} <= set(manifest.files)
    assert load_bundle(schema.export_dir).predict(sorted(scenes.rglob("*.jpg"))[:2])
    bare = ArtifactSchema(shutil.copytree(schema.output_dir, tmp_path / "run"))
    bare.scrc_params_json.unlink()
    code, _, err = command("train", f"run_dir={bare.output_dir}", "pipeline.phases=[phase6]")
    assert (code, "scrc_params.json" in err) == (2, True)


@pytest.mark.slow
@pytest.mark.spec(168)
def test_the_bundle_as_one_file(typed_run, scenes, tmp_path):
    schema = ArtifactSchema(shutil.copytree(typed_run[0].output_dir, tmp_path / "run"))
    line = "python scripts/train_cli_v2.py pipeline.phases=[phase6] phase6.archive=true"
    assert run_command(line, schema, scenes) == 0
    with tarfile.open(schema.bundle_archive) as archive:
        assert any(name.endswith("bundle.json") for name in archive.getnames())


@pytest.mark.slow
@pytest.mark.spec(177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 188, 193)
def test_the_evaluation_has_metrics_intervals_and_plots(typed_run):
    schema, _, _ = typed_run
    metrics = read_json(schema.evaluation_report_json)["metrics"]
    names = ("accuracy", "precision", "recall", "f1", "mcc", "fnr", "fpr", "roc_auc", "pr_auc")
    assert all({"estimate", "low", "high"} <= metrics[name].keys() for name in names)
    for path in (schema.roc_curve, schema.pr_curve, schema.confusion_matrix, schema.reliability_diagram):
        assert path.read_bytes().startswith(b"\x89PNG")

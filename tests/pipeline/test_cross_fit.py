"""The chain under data.protocol=cross_fit, through the command line, on tiny data."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Split
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json
from streetvision.io.tensors import load_state, save_tensors
from streetvision.pipeline import budget
from streetvision.pipeline.steps import cross_fit_baseline
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from tests.conftest import TINY_MODEL, logged_metric

MODEL = [setting for setting in TINY_MODEL if not setting.startswith("data.protocol")]
CROSS_FIT = [*MODEL, "data.protocol=cross_fit", "data.folds=3"]
QUICK = ["evaluation.mode=quick", "evaluation.n_resamples=100"]
FULL = ["training=full", "training.epochs=2", "training.batch_size=16"]


@pytest.fixture(scope="module")
def cross_fit_run(scenes, tmp_path_factory):
    """A run of every phase under cross_fit, and its evaluation."""
    from streetvision.cli.app import main

    root = tmp_path_factory.mktemp("cross_fit") / "run"
    for arguments in (
        ["train", f"data.root={scenes}", f"run_dir={root}", *CROSS_FIT],
        ["evaluate", "--bundle", str(root / "export"), "evaluation.n_resamples=100"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
    return ArtifactSchema(root)


@pytest.fixture
def copied(cross_fit_run, tmp_path):
    """A copy of the run, for tests that change it."""
    return ArtifactSchema(shutil.copytree(cross_fit_run.output_dir, tmp_path / "run"))


@pytest.fixture
def phase1(scenes, tmp_path, command):
    """Run phase 1 under cross_fit with some settings; returns (exit code, output, paths)."""

    def run(*settings, root=scenes, name="run"):
        schema = ArtifactSchema(tmp_path / name)
        command_line = [f"data.root={root}", f"run_dir={schema.output_dir}", *CROSS_FIT, "pipeline.phases=[phase1]"]
        code, out, err = command("train", *command_line, *settings)
        return code, out + err, schema

    return run


def partition(schema):
    return partition_from_json(read_json(schema.splits_json), schema.splits_json)


def logits(schema):
    return torch.load(schema.val_calib_logits, weights_only=True)


def test_every_image_is_scored_by_the_head_of_its_fold_and_their_mean_ships(cross_fit_run):
    splits, heads = partition(cross_fit_run), load_state(cross_fit_run.fold_heads)
    folds = torch.tensor([fold for fold in splits.folds if fold >= 0])
    assert len(logits(cross_fit_run)) == len(folds) == len(splits.rows(Split.TRAIN))
    (cache,) = (load_state(path) for path in cross_fit_run.feature_cache_dir.glob("*.pt"))
    order = {bytes(digest): position for position, digest in enumerate(cache["digests"].tolist())}
    rows = torch.tensor([order[bytes.fromhex(row.sha256)] for row in splits.rows(Split.TRAIN)])
    probe = read_json(cross_fit_run.probe_json)
    width = cache["features"].shape[1] // 2  # CLS and mean of one block
    features = cache["features"][rows][:, : width * (1 + ("mean" in probe["pooling"]))]
    features = torch.nn.functional.layer_norm(features.double(), features.shape[1:])
    expected = (features * heads["weights"][folds]).sum(dim=1) + heads["biases"][folds]
    actual = logits(cross_fit_run)
    torch.testing.assert_close((actual[:, 1] - actual[:, 0]).double(), expected, rtol=1e-4, atol=1e-4)
    shipped = load_state(cross_fit_run.phase1_checkpoint)
    torch.testing.assert_close(2 * shipped["head.2.weight"][1].double(), heads["weights"].mean(0), rtol=1e-5, atol=1e-7)


def test_the_trackers_receive_the_out_of_fold_figures(cross_fit_run):
    nll = read_json(cross_fit_run.manifest("phase1"))["metrics"]["val_select_nll"]
    assert logged_metric(cross_fit_run.phase1_logs_dir, "val_select_nll") == pytest.approx([nll])


def test_the_policies_name_the_models_of_the_folds_and_certify_nothing(cross_fit_run):
    policy = read_json(cross_fit_run.scrc_params_json)
    assert len(policy["scores"]["fold_models"]) == 3
    assert policy["scores"] == read_json(cross_fit_run.val_calib_scores_json)["reference"]
    control = policy["scrc_params"]["risk_control"]
    assert not control["certified"]
    assert "cross_fit" in control["reason"]
    assert set(control["out_of_fold"]) == {"data", "balanced"}
    for risk in control["out_of_fold"].values():
        assert 0 <= risk["low"] <= risk["estimate"] <= risk["high"] <= 1


def test_the_report_has_the_out_of_fold_figures_beside_val_test(cross_fit_run):
    report = read_json(cross_fit_run.evaluation_report_json)
    out_of_fold = report["out_of_fold"]
    assert out_of_fold["images"] == len(partition(cross_fit_run).rows(Split.TRAIN))
    assert out_of_fold["metrics"].keys() == report["metrics"].keys()
    after = read_json(cross_fit_run.scrc_params_json)["scrc_params"]["after"]
    assert out_of_fold["metrics"]["mcc"] == after["mcc"]
    page = cross_fit_run.report_html.read_text()
    assert "Out of fold" in page
    assert "better evidence" in page


def test_other_data_has_no_out_of_fold_figures(copied, command, tmp_path):
    data = tmp_path / "VAL_TEST"
    write_scenes(data, SceneConfig(count=24, first_seed=5000, width=96, height=72), Silent())
    arguments = ["evaluate", "--bundle", copied.export_dir, "--data", data, f"run_dir={tmp_path / 'on'}", *QUICK]
    code, _, err = command(*arguments)
    assert code == 0, err
    assert "out_of_fold" not in read_json(ArtifactSchema(tmp_path / "on").evaluation_report_json)


def test_the_out_of_fold_figures_are_those_of_the_policy_and_their_level_is_recorded(copied, command):
    content = read_json(copied.out_of_fold_json)
    assert content.pop("level") == 0.95
    copied.out_of_fold_json.write_text(json.dumps(content))  # a file of an earlier version
    copied.search_best_yaml.parent.mkdir()
    copied.search_best_yaml.write_text("")
    evaluate = ["evaluate", "--bundle", copied.export_dir, *QUICK, "evaluation.confidence_level=0.9"]
    code, out, err = command(*evaluate)
    assert code == 0, err
    out_of_fold = read_json(copied.evaluation_report_json)["out_of_fold"]
    assert (out_of_fold["level"], out_of_fold["searched"]) == (0.95, True)
    assert "95% intervals" in out
    code, out, err = command(
        "train", f"run_dir={copied.output_dir}", "pipeline.phases=[phase6]", "phase6.policy=threshold"
    )
    assert code == 0, err
    code, out, err = command(*evaluate)
    assert code == 0, err
    assert "out_of_fold" not in read_json(copied.evaluation_report_json)


def test_the_line_of_phase_5_has_the_figures_of_the_report(copied, command):
    # With this seed a calibrator is selected without one of the folds, and none on all rows.
    overrides = ["pipeline.phases=[phase5]", "phase5.folds=2", "phase5.seed=6"]
    assert command("train", f"run_dir={copied.output_dir}", *overrides)[0] == 0
    summary = read_json(copied.manifest("phase5"))["summary"]
    metrics = read_json(copied.out_of_fold_json)["metrics"]
    for name in ("nll", "ece", "fnr", "fpr"):
        assert f"{name.upper()} {metrics[name]['estimate']:.3f}" in summary


@pytest.mark.parametrize("change", ["heads", "shipped"])
def test_the_export_refuses_models_that_did_not_make_the_scores(copied, command, change):
    heads = load_state(copied.fold_heads)
    heads["biases"][0] += 1
    if change == "heads":
        save_tensors(copied.fold_heads, heads)
    else:
        copied.fold_heads.unlink()
    code, _, err = command("train", f"run_dir={copied.output_dir}", "pipeline.phases=[phase6]")
    assert code == 2
    assert "Traceback" not in err


def test_a_label_that_one_group_carries_is_not_learnt_out_of_fold(tmp_path, scenes, phase1):
    """Labels that are random but for their group: a probe that saw the group would predict them."""
    names = [row["path"] for row in csv.DictReader((scenes / "index.csv").open())]
    generator = np.random.default_rng(0)
    with (tmp_path / "index.csv").open("w") as handle:
        handle.write("path,label,group\n")
        for number, name in enumerate(names):
            group = number // 4
            handle.write(f"{scenes / name},{int(generator.permutation(40)[group % 40] % 2)},g{group}\n")
    code, out, schema = phase1("data.class_names=[a,b]", "data.grouping.by=[column]", root=tmp_path / "index.csv")
    assert code == 0, out
    labels = np.array([row.label for row in partition(schema).rows(Split.TRAIN)])
    decisions = (logits(schema)[:, 1] > logits(schema)[:, 0]).numpy()
    assert abs(np.corrcoef(labels, decisions)[0, 1]) < 0.3 or np.ptp(decisions) == 0


def test_auto_takes_cross_fit_for_few_images_and_keeps_it_when_images_are_added(scenes, tmp_path, command):
    rows = (scenes / "index.csv").read_text().splitlines()
    index, run = tmp_path / "index.csv", tmp_path / "run"

    def prepare(lines, *settings):
        index.write_text("\n".join([rows[0], *(f"{scenes}/{line}" for line in lines)]))
        base = ["train", f"data.root={index}", f"run_dir={run}", "pipeline.phases=[data]"]
        code, out, err = command(*base, *settings)
        assert code == 0, out + err
        return out, partition(ArtifactSchema(run))

    out, first = prepare(rows[1:101])
    assert "data.protocol=cross_fit" in out
    assert "more images" in out
    assert first.n_folds == 4
    _, more = prepare(rows[1:], "phase5.risk.alpha=0.3", "phase5.risk.delta=0.4")
    before = {row.sha256: fold for row, fold in zip(first.index.rows, first.folds, strict=True)}
    after = {row.sha256: fold for row, fold in zip(more.index.rows, more.folds, strict=True)}
    assert before.items() <= after.items()
    _, split = prepare(rows[1:], "data.protocol=split")
    assert split.folds is None
    test = {row.sha256 for row in more.rows(Split.VAL_TEST)}
    assert test <= {row.sha256 for row in split.rows(Split.VAL_TEST)}


def test_auto_takes_split_where_a_certificate_is_possible(scenes, tmp_path, command):
    base = ["train", f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    code, out, _ = command(*base, "phase5.risk.alpha=0.3", "phase5.risk.delta=0.4")
    assert code == 0
    assert "cross_fit" not in out
    assert partition(ArtifactSchema(tmp_path / "run")).folds is None


def test_fine_tuning_runs_in_each_fold(phase1):
    code, out, schema = phase1(*FULL)
    assert code in (0, 3), out
    gate = read_json(schema.finetuning_gate_json)
    record = read_json(schema.val_calib_scores_json)["reference"]
    folds = [schema.in_fold(fold) for fold in range(3)]
    assert all(fold.phase1_checkpoint.is_file() for fold in folds)
    assert gate["ships"] == (gate["share"] > 0)
    assert gate["ships"] != schema.fold_heads.is_file()
    if gate["ships"]:
        scored = torch.cat([logits(fold) for fold in folds])
        order = np.argsort([fold for fold in partition(schema).folds if fold >= 0], kind="stable")
        assert torch.equal(logits(schema)[order], scored)
    assert len(record["fold_models"]) == 3
    # Finished folds are not trained again.
    times = [fold.phase1_checkpoint.stat().st_mtime_ns for fold in folds]
    schema.manifest("phase1").unlink()
    assert phase1(*FULL)[0] in (0, 3)
    assert times == [fold.phase1_checkpoint.stat().st_mtime_ns for fold in folds]
    # A record of another version counts as none.
    folds[1].fold_json.write_text('{"share": 1}')
    schema.manifest("phase1").unlink()
    assert phase1(*FULL)[0] in (0, 3)
    changed = [fold.phase1_checkpoint.stat().st_mtime_ns != time for fold, time in zip(folds, times, strict=True)]
    assert changed == [False, True, False]


def test_a_fine_tuned_model_is_trained_again_on_the_images_of_all_folds(phase1):
    code, out, schema = phase1(*FULL, "training.epochs=1", "training.gate=off")
    assert code == 0, out
    assert "trained again on all folds" in out
    nll = read_json(schema.manifest("phase1"))["metrics"]["val_select_nll"]
    assert logged_metric(schema.phase1_logs_dir, "val_select_nll") == pytest.approx([nll])
    shipped = load_state(schema.phase1_checkpoint)
    for fold in range(3):
        of_fold = load_state(schema.in_fold(fold).phase1_checkpoint)
        assert any(not torch.equal(shipped[name], of_fold[name]) for name in shipped)
    # All folds read the features that the heads chose, on all images.
    description = read_json(schema.model_config_json)
    for fold in range(3):
        of_fold = read_json(schema.in_fold(fold).model_config_json)
        assert (of_fold["pooling"], of_fold["layers"]) == (description["pooling"], description["layers"])


def test_auto_trains_all_epochs_on_all_images_outside_the_fold(phase1):
    auto = ["training=auto", "training.gate=off", "training.epochs=2", "training.batch_size=16"]
    code, out, schema = phase1(*auto, "training.early_stopping_patience=1")
    assert code == 2
    assert "training.early_stopping_patience" in out
    code, out, schema = phase1(*auto, "augmentation.gate=only_report", "augmentation.gate_epochs=1")
    assert code in (0, 3), out
    assert "auto, 2 epochs" in out
    for fold in range(3):
        assert len(read_json(schema.in_fold(fold).fold_json)["history"]) == 2
        assert schema.in_fold(fold).augmentation_gate_json.is_file()
    assert read_json(schema.finetuning_gate_json)["share"] == 1.0
    assert schema.phase1_metrics_csv.read_text().startswith("epoch,train_loss,")
    assert schema.learning_curve_plot.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def afford(monkeypatch):
    """Let the budget allow a number of images of training steps; what is only evaluated takes no time."""

    def set_steps(steps):
        def affordable(_classifier, _context, config, work):
            epochs = min(config.epochs, int(steps / work.trained))
            return epochs, epochs * work.trained * config.budget_minutes / steps

        for module in (budget, cross_fit_baseline):
            monkeypatch.setattr(module, "affordable_epochs", affordable)

    return set_steps


def test_with_a_small_budget_fewer_epochs_are_trained_before_folds_are_left_out(phase1, afford):
    afford(1512)  # 3.5 epochs in three folds and on all images, 4.5 in two
    code, out, _ = phase1("training=auto", "training.gate=off", "training.epochs=4", "training.batch_size=16")
    assert code in (0, 3), out
    assert "training.epochs=3: fine-tuning in 3 of 3 folds" in out


def test_with_a_small_budget_a_model_is_trained_in_fewer_folds(phase1, afford):
    afford(400)  # an epoch in two folds of three and on all images
    settings = [
        "training=auto",
        "training.gate=off",
        "training.epochs=1",
        "training.batch_size=16",
        "pipeline.phases=[phase1,phase2,phase5,phase6]",
    ]
    code, out, schema = phase1(*settings)
    assert code in (0, 3), out
    assert "in 2 of 3 folds" in out
    record = read_json(schema.val_calib_scores_json)["reference"]
    splits = partition(schema)
    assert not schema.fold_heads.exists()
    assert len(record["fold_models"]) == 2
    assert record["n"] == sum(fold in (0, 1) for fold in splits.folds)
    assert read_json(schema.bundle_json)["policy"]["scores"] == record
    assert not (schema.in_fold(2).phase1_checkpoint).exists()


def test_with_a_short_budget_the_fine_tuned_model_reads_fewer_patches(phase1, monkeypatch):
    evaluated = []

    def affordable(classifier, _context, config, work):
        """A budget that allows one epoch in two folds, and three of 8 patches."""
        evaluated.append(work.evaluated)
        height, width = classifier.backbone.spec.image_size
        epochs = 3 if height * width <= 8 * classifier.backbone.spec.patch_size**2 else 1
        return min(config.epochs, 336 * epochs // work.trained), config.budget_minutes

    for module in (budget, cross_fit_baseline):
        monkeypatch.setattr(module, "affordable_epochs", affordable)
    monkeypatch.setattr(budget, "FEWER_TOKENS", 8)
    monkeypatch.setattr(cross_fit_baseline, "LEVEL_OF_FINE_TUNING", 1 - 1e-12)  # the gate keeps the probe
    settings = ["training=auto", "training.epochs=6", "training.batch_size=16", "model.image_size=auto"]
    sizes = {}
    for gate in ("off", "on"):
        evaluated.clear()
        phases = "pipeline.phases=[phase1,phase2,phase5,phase6]"
        code, out, schema = phase1(*settings, f"training.gate={gate}", phases, name=gate)
        assert code in (0, 3), out
        assert "training.epochs=3: fine-tuning in 2 of 3 folds" in out
        # The scores of two folds of 48 images, and features of all images with the new size.
        assert evaluated[:2] == [96, 96 + 144]
        height, width = read_json(schema.model_config_json)["image_size"]
        sizes[gate] = height * width
        assert schema.bundle_json.is_file()
    assert sizes["off"] <= 8 * 16**2 < sizes["on"]  # the probe keeps the size of the others

    code, out, schema = phase1(*settings, "model.image_tokens=16", "training.gate=off", name="set")
    assert code in (0, 3), out
    assert "training.epochs=1: fine-tuning in 2 of 3 folds" in out


def test_a_head_that_is_trained_with_gradients_is_trained_in_each_fold(phase1):
    code, out, schema = phase1("model.head.kind=mlp", "training.epochs=4")
    assert code in (0, 3), out
    assert not schema.fold_heads.exists()
    assert not schema.probe_json.exists()
    assert len(set(read_json(schema.val_calib_scores_json)["reference"]["fold_models"])) == 3


def test_without_a_budget_a_head_that_is_trained_with_gradients_is_trained_in_each_fold(phase1):
    code, out, schema = phase1("training=auto", "model.head.kind=mlp", "training.budget_minutes=0")
    assert code in (0, 3), out
    assert "training=frozen: training.budget_minutes=0" in out
    assert not schema.step_time_json.exists()
    assert len(set(read_json(schema.val_calib_scores_json)["reference"]["fold_models"])) == 3


TILES = ["phase4c.views.rows=1", "phase4c.views.columns=2"]


@pytest.mark.parametrize(
    "mode",
    [
        ["phase4c=cvfm", "phase4c.epochs=3", *TILES, "phase4c.gate=off"],
        ["phase4c=auto", *TILES, "phase4c.gate=only_report"],
    ],
)
def test_a_fitted_fusion_is_fitted_in_each_fold(copied, command, mode):
    settings = [*mode, "phase5.folds=2"]
    arguments = ["train", f"run_dir={copied.output_dir}", "pipeline.phases=[phase4c_cvfm,phase5,phase6]", *settings]
    code, out, err = command(*arguments)
    assert code == 0, out + err
    assert "out-of-fold" in out
    reference = read_json(copied.scrc_params_json)["scores"]
    assert reference["fusion"] is not None
    assert len(set(reference["fold_models"])) == 3
    weights = copied.in_fold(1).cvfm_weights
    state = load_state(weights)
    save_tensors(weights, {name: value + 1 for name, value in state.items()})
    archive = ["pipeline.phases=[phase6]", "phase6.archive=true"]
    code, _, err = command("train", f"run_dir={copied.output_dir}", *archive)
    assert code == 2, err


def test_evidence_is_fitted_on_views_by_models_that_did_not_see_the_image(phase1, command, monkeypatch):
    code, out, schema = phase1(*FULL, "training.epochs=1", "training.gate=off")
    assert code == 0, out
    from streetvision.pipeline.steps import train_cvfm

    fits = []
    fit = train_cvfm.fit_evidence

    def recorded(features, mask, labels, base, groups, **settings):
        fits.append(torch.from_numpy(base))
        return fit(features, mask, labels, base, groups, **settings)

    monkeypatch.setattr(train_cvfm, "fit_evidence", recorded)
    arguments = ["train", f"run_dir={schema.output_dir}", "pipeline.phases=[phase4c_cvfm]", "phase4c=mil", *TILES]
    code, out, err = command(*arguments)
    assert code == 0, out + err
    fold_of_rows = torch.tensor([fold for fold in partition(schema).folds if fold >= 0])
    margins = logits(schema).double() @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert len(fits) == 4
    for fold, base in enumerate(fits[:3]):
        torch.testing.assert_close(base, margins[fold_of_rows != fold], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fits[3], margins, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gate", ["on", "only_report"])
def test_evidence_of_too_few_groups_does_not_end_a_run_whose_gate_is_on(copied, command, monkeypatch, gate):
    from streetvision.pipeline.steps import train_cvfm

    def too_few(*_, **__):
        raise DataError("a class has one group only")

    monkeypatch.setattr(train_cvfm, "fit_evidence", too_few)
    phases = "pipeline.phases=[phase4c_cvfm,phase5,phase6]"
    settings = ["phase4c=auto", *TILES, f"phase4c.gate={gate}", "phase5.folds=2"]
    code, out, err = command("train", f"run_dir={copied.output_dir}", phases, *settings)
    if gate == "only_report":
        assert code == 2
        assert "phase4c=single_view" in err
        return
    assert code == 0, out + err
    assert "one group only" in out + err
    assert read_json(copied.fusion_gate_json)["ships"] is False
    assert read_json(copied.scrc_params_json)["scores"]["fusion"] is None


def test_mac_cal_needs_val_calib(copied, command):
    code, _, err = command("train", f"run_dir={copied.output_dir}", "pipeline.phases=[phase5_maccal]")
    assert code == 2
    assert "data.protocol=split" in err


def test_another_runtime_and_the_reward_read_no_image_that_they_may_not(copied, command, tmp_path):
    code, out, err = command("export", "--bundle", copied.export_dir, "--runtime", "onnx", "--out", tmp_path / "onnx")
    assert code == 0, out + err
    code, out, err = command("subnet", "reward", "--bundle", copied.export_dir, "reward.n_simulations=20")
    assert code == 0, out + err
    assert "cross_fit sets no VAL_CALIB aside" in out
    assert read_json(copied.reward_report_json)["best"] == {}


def test_few_images_get_fewer_folds_in_phase_5_unless_they_are_set(scenes, tmp_path, command):
    header, *rows = (scenes / "index.csv").read_text().splitlines()
    of_class = {label: [row for row in rows if row.split(",")[1] == label][:4] for label in ("0", "1")}
    lines = [f"{scenes}/{row}" for chosen in of_class.values() for row in chosen]
    (tmp_path / "index.csv").write_text("\n".join([header, *lines]))
    model = [setting for setting in TINY_MODEL if not setting.startswith(("data.protocol", "phase5.folds"))]
    run = ["train", f"data.root={tmp_path / 'index.csv'}", f"run_dir={tmp_path / 'run'}", *model]
    code, _, err = command(*run, "phase5.folds=7")
    assert code == 2
    assert "phase5.folds is 7" in err
    code, out, err = command(*run, "phase5.folds=6")
    assert code == 0, err
    code, out, err = command(*run)
    assert code == 0, err
    assert "phase5.folds=" not in out


@pytest.fixture
def rides(scenes, tmp_path):
    """rides(n): an index of n groups of 12 images, each with both classes."""

    def make(n):
        header, *rows = (scenes / "index.csv").read_text().splitlines()
        ordered = sorted(rows, key=lambda row: row.split(",")[1])
        lines = [
            f"{scenes}/{row},ride{at % n}" for half in (ordered, ordered[::-1]) for at, row in enumerate(half[: 6 * n])
        ]
        path = tmp_path / f"{n}.csv"
        path.write_text("\n".join([f"{header},ride", *lines]))
        return path

    return make


def train_rides(command, index, run, *settings):
    model = [setting for setting in TINY_MODEL if not setting.startswith(("data.protocol", "phase5.folds"))]
    grouping = ["data.grouping.by=[column]", "data.group_column=ride"]
    code, out, err = command("train", f"data.root={index}", f"run_dir={run}", *model, *grouping, *settings)
    return code, out + err


def test_four_rides_are_enough(rides, tmp_path, command):
    code, out = train_rides(command, rides(4), tmp_path / "run")
    assert code == 0, out
    assert out.count("phase5.folds=3: VAL_CALIB has 3 groups") == 1
    assert ArtifactSchema(tmp_path / "run").bundle_json.is_file()


def test_one_ride_in_val_calib_is_enough(rides, tmp_path, command):
    code, out = train_rides(command, rides(5), tmp_path / "run", "data.protocol=split")
    assert code == 0, out
    assert "phase5.folds=1: VAL_CALIB has 1 group," in out
    params = read_json(ArtifactSchema(tmp_path / "run").scrc_params_json)["scrc_params"]
    assert params["calibrator"]["name"] == "none"
    assert params["before"] == params["after"]


def test_two_rides_in_the_folds_that_a_budget_allows_are_enough(rides, tmp_path, command, afford):
    afford(96)  # an epoch in two folds of three and on all images
    settings = ["training=auto", "training.gate=off", "training.epochs=1", "training.batch_size=16"]
    code, out = train_rides(command, rides(4), tmp_path / "run", *settings)
    assert code == 0, out
    assert "in 2 of 3 folds" in out
    assert "phase5.folds=2: VAL_CALIB has 2 groups" in out


def test_one_ride_in_each_fold_leaves_the_augmentation_out(rides, tmp_path, command):
    settings = [*FULL, "training.epochs=1", "augmentation.gate=on", "pipeline.phases=[phase1]"]
    code, out = train_rides(command, rides(4), tmp_path / "run", *settings)
    assert code in (0, 3), out
    gate = read_json(ArtifactSchema(tmp_path / "run").in_fold(0).augmentation_gate_json)
    assert gate["ships"] is False
    assert gate["better"] is None


def test_too_few_groups_are_an_error_with_the_class(scenes, tmp_path, command):
    rows = (scenes / "index.csv").read_text().splitlines()
    lines = [f"{scenes}/{line},g{number % 3}" for number, line in enumerate(rows[1:])]
    (tmp_path / "index.csv").write_text("\n".join([rows[0] + ",ride", *lines]))
    settings = ["data.protocol=cross_fit", "data.grouping.by=[column]", "data.group_column=ride"]
    settings.append("pipeline.phases=[data]")
    code, _, err = command("train", f"data.root={tmp_path / 'index.csv'}", f"run_dir={tmp_path / 'run'}", *settings)
    assert code == 2
    assert "at least 4 are needed" in err

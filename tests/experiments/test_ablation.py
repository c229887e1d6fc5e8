"""streetvision dev ablate, from a table to its differences, through the command line."""

from pathlib import Path

import numpy as np
import pytest
from yaml import safe_dump, safe_load

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.eval.metrics import all_metrics
from streetvision.experiments.ablation import (
    NO_RECORD,
    execute_runs,
    launch_ablation,
    plan_runs,
    requested_table,
)
from streetvision.experiments.ablation_run import AblationRecord, AblationRun
from streetvision.experiments.ablation_table import AblationTable
from streetvision.experiments.request import ExperimentRequest
from streetvision.experiments.scene_data import drawn_or_given, with_environment
from streetvision.experiments.tables import packaged_tables, read_table
from streetvision.io.atomic import read_json
from streetvision.io.predictions import PolicyPredictions, read_predictions
from streetvision.pipeline.console import Console
from streetvision.pipeline.test_access_log import count_test_accesses

BROKEN = {"name": "broken", "variant": {"settings": ["training.learning_rate=1e30"]}, "expected": {"mcc": "+1"}}


PAIR_TABLES = [name for name in packaged_tables() if isinstance(read_table(name), AblationTable)]


def request_of(table, out, *, page=None, overrides=(), **only):
    return ExperimentRequest(read_table(str(table)).only(**only), str(table), out, overrides, page=page)


@pytest.fixture
def table(tmp_path):
    """The packaged smoke table, with one training per run, and with a pair whose second arm cannot learn."""
    content = safe_load(packaged_tables()["smoke"].read_text())
    common = [*content["common"], "training.epochs=1", "data.protocol=split"]
    file = tmp_path / "with_broken.yaml"
    file.write_text(safe_dump({**content, "common": common, "pairs": [*content["pairs"], BROKEN]}))
    return file


@pytest.mark.long
def test_an_ablation_from_its_table_to_a_page(table, tmp_path, capsys):
    """All that needs runs, in one test: they take seconds each."""
    out = tmp_path / "out"
    assert not launch_ablation(request_of(table, out, seeds=(0,)), Console())
    finished_pairs_are_measured_and_failed_ones_named(out)
    the_figures_are_those_of_the_runs_own_evaluations(out)
    arms_with_equal_settings_share_one_run_and_one_test_access(out)
    for log in (out / "runs").rglob("*.log"):
        assert "has no effect" not in log.read_text()
    capsys.readouterr()
    the_same_command_again_runs_nothing_and_writes_the_page(out, table, tmp_path / "page.md")
    assert "2 runs, 2 of them done" in capsys.readouterr().out


def arms_of(out):
    return read_json(out / "ablation.json")["arms"]


def rows_of(out, pair):
    return {row["quantity"]: row for row in read_json(out / "ablation.json")["rows"] if row["pair"] == pair}


def finished_pairs_are_measured_and_failed_ones_named(out):
    threshold, broken = rows_of(out, "threshold"), rows_of(out, "broken")
    assert threshold["mcc"]["splits"] == 1
    assert threshold["cost"]["difference"] == 1
    assert broken["mcc"]["difference"] is None
    assert broken["mcc"]["missing"][0].startswith("seed 0, variant: error: the loss is")
    table = (out / "ablation.md").read_text()
    assert "| tiny | calibrator | MCC |" in table
    assert "below 0.02" in table
    assert "Left out: broken on tiny, seed 0, variant: error: the loss is" in table
    assert len((out / "ablation.csv").read_text().splitlines()) == 13


def the_figures_are_those_of_the_runs_own_evaluations(out):
    arms = {(arm["pair"], arm["arm"]): ArtifactSchema(Path(arm["run"])) for arm in arms_of(out)}
    schema, rows = arms["threshold", "baseline"], rows_of(out, "threshold")
    policies = {policy["name"]: policy["metrics"] for policy in read_json(schema.evaluation_report_json)["policies"]}
    assert rows["mcc"]["baseline"] == pytest.approx(policies["argmax"]["mcc"]["estimate"])
    assert rows["mcc"]["variant"] == pytest.approx(policies["threshold"]["mcc"]["estimate"])
    assert rows_of(out, "calibrator")["ece"]["variant"] == pytest.approx(policies["scrc"]["ece"]["estimate"])
    for answers in read_predictions(schema.predictions_csv):
        found = all_metrics(answers.labels, answers.probabilities, answers.decisions)
        assert found["mcc"] == pytest.approx(policies[answers.policy]["mcc"]["estimate"])


def arms_with_equal_settings_share_one_run_and_one_test_access(out):
    runs = {(arm["pair"], arm["arm"]): arm["run"] for arm in arms_of(out)}
    assert (
        runs["threshold", "baseline"]
        == runs["threshold", "variant"]
        == runs["calibrator", "variant"]
        == runs["broken", "baseline"]
    )
    assert len(set(runs.values())) == 3
    assert count_test_accesses(ArtifactSchema(Path(runs["threshold", "baseline"])).test_access_log_json) == 1
    assert read_json(out / "ablation.json")["test_accesses"] == {"tiny, seed 0": 2}


def the_same_command_again_runs_nothing_and_writes_the_page(out, table, page):
    page.write_text(f"before\n<!-- ablate {table.stem} -->\n<!-- end -->\nafter\n")
    before = (out / "ablation.md").read_text()
    request = request_of(table, out, seeds=(0,), pairs=("threshold", "calibrator"), page=page)
    assert launch_ablation(request, Console())
    assert "calibrator" in page.read_text()
    assert (out / "ablation.md").read_text() != before  # the broken pair is left out, and so is its correction


@pytest.mark.parametrize("name", PAIR_TABLES)
def test_the_settings_of_every_packaged_table_compose(name, tmp_path):
    table = read_table(name).model_copy(update={"seeds": (0,)})
    plan = plan_runs(table, {data: (f"data.root=drawn/{data}",) for data in table.data}, request_of(name, tmp_path))
    assert len(plan) == 2 * len(table.comparisons) > len(set(plan.values()))


def test_the_example_of_few_labels_composes(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "few_labels.yaml"
    table = read_table(str(example))
    (tmp_path / "deit.safetensors").touch()
    request = request_of(example, tmp_path, overrides=(f"model.backbone.weights={tmp_path / 'deit.safetensors'}",))
    plan = plan_runs(table, table.data, request)
    assert len(plan) == 2 * 3 * 5
    assert len(set(plan.values())) == (2 + 3) * 5  # both pairs on scenes share the runs without phase 4a


def test_a_data_set_without_its_environment_variable_is_left_out(table, tmp_path, command, monkeypatch):
    monkeypatch.delenv("PHOTOS_OF_A_TEST", raising=False)
    content = safe_load(table.read_text())
    table.write_text(safe_dump({**content, "data": {"photos": ["data.root=$PHOTOS_OF_A_TEST/a"]}}))
    code, _, err = command("dev", "ablate", table, "--out", tmp_path / "out")
    assert code == 2
    assert "'photos' is left out" in err
    assert "no data set" in err
    monkeypatch.setenv("PHOTOS_OF_A_TEST", "photos")
    assert with_environment("photos", ["data.root=${PHOTOS_OF_A_TEST}/a"], Console()) == ("data.root=photos/a",)


def test_invalid_settings_name_their_pair_before_anything_runs(table, tmp_path, command):
    out = tmp_path / "out"
    code, _, err = command("dev", "ablate", table, "training.epoch=3", "--out", out, "data.root=nowhere")
    assert code == 2
    assert "pair 'threshold': training.epoch is not a setting" in err
    assert not (out / "runs").exists()
    code, _, err = command("dev", "ablate", table, "--out", out, "--pair", "treshold")
    assert code == 2
    assert "did you mean 'threshold'" in err


def test_settings_that_are_the_same_however_written_are_one_run(tmp_path):
    written = ({"settings": ["training.epochs=3"]}, {"settings": ["training.epochs=0x3"], "policy": "argmax"})
    pair = {"name": "same", "baseline": written[0], "variant": written[1], "expected": {"mcc": "+0"}}
    content = {"title": "t", "seeds": [0], "data": {"d": ["data.root=photos"]}, "pairs": [pair]}
    (tmp_path / "t.yaml").write_text(safe_dump(content))
    table = read_table(str(tmp_path / "t.yaml"))
    plan = plan_runs(table, table.data, request_of(tmp_path / "t.yaml", tmp_path))
    assert len(plan) == 2
    assert len(set(plan.values())) == 1
    other = plan_runs(table, table.data, request_of(tmp_path / "t.yaml", tmp_path, overrides=("loader.num_workers=2",)))
    assert {run.root for run in other.values()} == {run.root for run in plan.values()}  # how, not what


@pytest.fixture
def planned(tmp_path):
    """Plan a table with one pair."""

    def plan(baseline, variant, *overrides):
        pair = {"name": "one", "baseline": {"settings": baseline}, "variant": {"settings": variant}}
        content = {"title": "t", "seeds": [0], "data": {"d": ["data.root=photos"]}, "pairs": [pair]}
        (tmp_path / "t.yaml").write_text(safe_dump(content))
        request = request_of(tmp_path / "t.yaml", tmp_path, overrides=overrides)
        return plan_runs(request.table, request.table.data, request)

    return plan


def test_arms_that_the_command_makes_the_same_are_refused(planned):
    assert len(planned(["phase5.method=none"], ["phase5.method=platt"])) == 2
    with pytest.raises(ConfigError, match="same settings and policy"):
        planned(["phase5.method=none"], ["phase5.method=platt"], "phase5.method=temperature")


@pytest.mark.parametrize("setting", ["data.seed=5", "data.fractions={train: 0.5, val_test: 0.2}"])
def test_arms_with_other_splits_are_refused_before_anything_runs(planned, setting):
    with pytest.raises(ConfigError, match="VAL_TEST"):
        planned([], [setting])
    assert len(planned([setting], [setting, "phase5.method=none"])) == 2


def test_a_pair_without_its_predictions_is_left_out_and_the_others_are_compared(table, tmp_path, command, monkeypatch):
    """The run of a pair ends without the predictions of its policy."""

    def finished(run, table=table):
        return AblationRecord(
            settings_sha256="0" * 64, code_sha256="0" * 64, overrides=(), images_outside_val_test=8, cost=1
        )

    labels = np.array([0, 1, 0, 1])
    shipped = PolicyPredictions(
        "scrc", "single_view", True, list("abcd"), labels, [None] * 4, labels * 0.8, labels == 1
    )
    monkeypatch.setattr(AblationRun, "record", finished)
    monkeypatch.setattr("streetvision.experiments.ablation.read_predictions", lambda _: [shipped])
    monkeypatch.setattr("streetvision.experiments.ablation.count_test_accesses", lambda _: 1)
    code, _, err = command("dev", "ablate", table, "--seeds", 1, "--out", tmp_path / "out")
    assert code == 2
    assert "left out: threshold on tiny, seed 0" in err
    assert rows_of(tmp_path / "out", "threshold")["mcc"]["difference"] is None
    assert rows_of(tmp_path / "out", "calibrator")["mcc"]["difference"] == 0


def test_settings_that_a_table_of_pairs_replaces_are_refused(table, tmp_path, command):
    code, _, err = command("dev", "ablate", table, "pipeline.seed=7", "--out", tmp_path / "out")
    assert code == 2
    assert "--seeds" in err
    assert not (tmp_path / "out").exists()


def test_data_of_the_table_cannot_be_selected_with_other_data(table, tmp_path, command):
    code, _, err = command("dev", "ablate", table, "--data", "tiny", "data.root=photos", "--out", tmp_path / "out")
    assert code == 2
    assert "--data has no effect" in err


def test_other_weights_in_the_same_file_are_another_run(tmp_path):
    example, weights = Path(__file__).parents[2] / "examples" / "few_labels.yaml", tmp_path / "vit.safetensors"
    request = request_of(example, tmp_path, overrides=(f"model.backbone.weights={weights}",))
    planned = []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        planned.append({run.root for run in plan_runs(request.table, request.table.data, request).values()})
    assert not planned[0] & planned[1]


def test_other_scenes_are_another_data_set(tmp_path):
    """Their folder is named after them: arms on the ones before are no arms on these."""
    table = read_table("smoke")
    first, again, other = (
        drawn_or_given("tiny", table.data["tiny"], (f"scenes.count={count}",), tmp_path, Console())
        for count in (4, 4, 5)
    )
    assert first == again != other


def test_an_arm_whose_code_changed_while_it_ran_has_failed(tmp_path, monkeypatch):
    arm = AblationRun((), "0" * 64, tmp_path / "arm")
    monkeypatch.setattr("streetvision.experiments.ablation.run_in_processes", lambda *_, **__: [(arm, 0)])
    assert execute_runs([arm], 1, Console()) == {arm: NO_RECORD}


def test_an_arm_cannot_choose_its_folder(tmp_path):
    request = request_of("smoke", tmp_path, overrides=("run_dir=here", "data.root=photos"))
    with pytest.raises(ConfigError, match="run_dir cannot be set"):
        launch_ablation(request, Console())


def test_ones_own_images_take_the_place_of_the_tables(tmp_path):
    table = requested_table(request_of("specification", tmp_path, overrides=("data.root=some/photos",)))
    assert list(table.data) == ["photos"]
    assert all(pair.data is None for pair in table.pairs)

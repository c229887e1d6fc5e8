"""reward, through the command line: rows, the access to VAL_TEST, and the thresholds that are compared."""

import contextlib
import io
import re
import shutil

import numpy as np
import pytest

from streetvision import load_bundle
from streetvision.cli.app import main
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import read_json
from streetvision.pipeline.steps.expect_reward import (
    VARIANTS,
    DistortedPredictions,
    RewardReport,
    Scenario,
    scenarios,
    summary_lines,
)

FEW = ["reward.n_simulations=40", "reward.steps=120"]


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    return ArtifactSchema(shutil.copytree(finished_run, tmp_path_factory.mktemp("reward") / "run"))


@pytest.fixture(scope="module")
def printed(run):
    """What the command printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
        main(["subnet", "reward", "--bundle", str(run.export_dir), *FEW])
    assert not stop.value.code
    return output.getvalue()


def test_the_first_line_is_the_state_of_the_subnet(printed):
    assert printed.splitlines()[0].startswith("subnet")
    assert "100 % burned" in printed.splitlines()[0]


def test_a_row_for_each_profile_and_level_and_for_timeouts(run, printed):
    every = read_json(run.reward_report_json)["rows"]
    rows = {(row["profile"], row["level"], row["timeout_fraction"]): row for row in every if row["source"] == "all"}
    levels = {"jan2026": ["all", *"0123"], "apr2026": ["all", *"0123"], "may2026": ["all"]}
    expected = {(profile, level, 0.0) for profile, profile_levels in levels.items() for level in profile_levels}
    assert rows.keys() == expected | {(profile, "all", 0.05) for profile in levels}
    for row in every:
        for score in row["scores"].values():
            assert 0 <= score["p5"] <= score["mean"] <= 1
    late, in_time = (rows["may2026", "all", share]["scores"]["bundle"]["mean"] for share in (0.05, 0.0))
    assert late != in_time
    assert read_json(run.manifest("reward"))["metrics"]["may2026_score"] == in_time
    shown = next(line for line in printed.splitlines() if line.startswith("may2026"))
    names = next(line for line in printed.splitlines() if line.startswith("profile")).split()[-3:]
    means = re.findall(r"(0\.\d{3}|1\.000) \[", shown)
    row = rows["may2026", "all", 0.0]
    assert [f"{row['scores'][name]['mean']:.3f}" for name in names] == means
    assert sum(line.startswith(("jan2026", "apr2026", "may2026")) for line in printed.splitlines()) >= len(every)


def test_a_long_source_does_not_run_into_the_next_column():
    score, names = {"mean": 0.5, "p5": 0.4, "p95": 0.6}, ("bundle", "balanced")
    sources = ("all", "", "bicycle-camera-north-2")
    rows = [
        {"profile": "may2026", "level": "all", "source": source, "timeout_fraction": 0.0, "n": 24}
        | {"scores": dict.fromkeys(names, score)}
        for source in sources
    ]
    fields = {"subnet_status": "", "test_access": 1, "thresholds": dict.fromkeys(names, 0.5), "best": {}, "notes": ()}
    lines = list(summary_lines(RewardReport.model_validate(fields | {"rows": rows})))
    title, *shown = lines[-4:]
    column = title.index("late")
    assert [line[:column].split()[-1] for line in shown] == ["all", "(none)", "bicycle-camera-north-2"]
    assert all(line[column - 1 :].startswith(" 0%") for line in shown)
    at = title.index("distorted images")
    assert [line[at:].split()[0] for line in shown] == ["24"] * 3


def test_several_sources_have_one_row_each():
    probabilities = np.arange(4 * len(VARIANTS)).reshape(4, -1) / 100
    predictions = DistortedPredictions(
        np.array([0.0, 1, 0, 1]), ["real", "real", "synthetic", "synthetic"], probabilities
    )
    found_scenarios = list(scenarios(predictions, 0.05))
    assert [scenario.source for scenario in found_scenarios if scenario.profile == "may2026"] == [
        "all",
        "real",
        "synthetic",
        "all",
    ]
    assert len(found_scenarios) == 5 * 3 + 5 * 3 + 3 + 3
    labels, part = predictions.select(Scenario("jan2026", "2", "synthetic"))
    assert labels.tolist() == [0, 1]
    assert part.tolist() == probabilities[2:, 2].tolist()
    labels, part = predictions.select(Scenario("apr2026"))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert part.tolist() == probabilities[:, 4:8].ravel().tolist()


def test_the_thresholds_are_of_the_bundle_of_balanced_labels_and_of_a_search_on_other_rows(run, printed):
    predictor = load_bundle(run.export_dir)
    report = read_json(run.reward_report_json)
    params = predictor.manifest.policy.scrc_params
    assert report["thresholds"] == {
        "bundle": params.threshold,
        "balanced": params.operating_points["balanced"].threshold,
    }
    assert report["best"].keys() == {"jan2026", "apr2026", "may2026"}


def test_an_unchanged_simulation_counts_no_access_and_the_seed_has_an_effect(run, printed, command):
    accesses, report = read_json(run.test_access_log_json), read_json(run.reward_report_json)
    code, out, err = command("subnet", "reward", "--bundle", run.export_dir, *FEW)
    assert code == 0, err
    assert "(unchanged)" in out
    assert read_json(run.test_access_log_json) == accesses
    code, _, err = command("subnet", "reward", "--bundle", run.export_dir, *FEW, "reward.seed=7")
    assert code == 0, err
    assert len(read_json(run.test_access_log_json)) == len(accesses) + 1
    assert read_json(run.reward_report_json)["rows"] != report["rows"]
    assert command("subnet", "reward", "--bundle", run.export_dir, *FEW)[0] == 0
    assert read_json(run.reward_report_json) == report | {"test_access": len(accesses) + 2}


def test_a_bundle_outside_its_run_needs_run_dir(run, command, tmp_path):
    moved = shutil.copytree(run.export_dir, tmp_path / "moved")
    code, _, err = command("subnet", "reward", "--bundle", moved, *FEW)
    assert code == 2
    assert "is not the run that made this bundle" in err

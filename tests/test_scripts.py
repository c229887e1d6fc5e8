"""The scripts, each in its own process."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_script(name, *arguments):
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_train_cli_runs_one_phase_of_an_existing_run(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    settings = [f"run_dir={run}", "pipeline.phases=[phase2]", "phase2.n_thresholds=100"]
    process = run_script("train_cli_v2.py", *settings)
    assert process.returncode == 0, process.stderr
    assert len((run / "phase2" / "threshold_sweep.csv").read_text().splitlines()) == 101


def test_few_labels_removes_the_labels_of_whole_groups_in_both_classes(scenes, tmp_path):
    out = tmp_path / "few"
    process = run_script("few_labels.py", scenes, out, "--keep", "0.25", "--seed", "1")
    assert process.returncode == 0, process.stderr
    files = [scenes / "index.csv", out / "labelled.csv", out / "unlabelled.csv"]
    dataset, labelled, unlabelled = (list(csv.DictReader(file.open())) for file in files)
    assert len(labelled) + len(unlabelled) == len(dataset)
    assert {row["group"] for row in labelled}.isdisjoint(row["group"] for row in unlabelled)
    assert "label" not in unlabelled[0]
    assert {row["label"] for row in labelled} == {"None", "Roadwork"}
    assert len({row["group"] for row in labelled}) == round(0.25 * len(dataset))  # every scene is its own group


def test_evaluate_cli_takes_the_path_of_bundle_json(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    process = run_script("evaluate_cli.py", "--bundle", run / "export" / "bundle.json", "evaluation.n_resamples=100")
    assert process.returncode == 0, process.stderr
    assert "MCC" in process.stdout

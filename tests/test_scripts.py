"""The specification's two command lines, as processes of their own."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def script(name, *arguments):
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_one_phase_runs_on_an_existing_run(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    settings = [f"run_dir={run}", "pipeline.phases=[phase2]", "phase2.n_thresholds=100"]
    done = script("train_cli_v2.py", *settings)
    assert done.returncode == 0, done.stderr
    assert len((run / "phase2" / "threshold_sweep.csv").read_text().splitlines()) == 101


def test_labels_are_taken_from_whole_groups_of_both_classes(scenes, tmp_path):
    out = tmp_path / "few"
    done = script("few_labels.py", scenes, out, "--keep", "0.25", "--seed", "1")
    assert done.returncode == 0, done.stderr
    files = [scenes / "index.csv", out / "labelled.csv", out / "unlabelled.csv"]
    listed, kept, others = (list(csv.DictReader(file.open())) for file in files)
    assert len(kept) + len(others) == len(listed)
    assert {row["group"] for row in kept}.isdisjoint(row["group"] for row in others)
    assert "label" not in others[0]
    assert {row["label"] for row in kept} == {"None", "Roadwork"}
    assert len({row["group"] for row in kept}) == round(0.25 * len(listed))  # every scene is its own group


def test_a_bundle_is_judged_by_its_json(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    done = script("evaluate_cli.py", "--bundle", run / "export" / "bundle.json", "evaluation.n_resamples=100")
    assert done.returncode == 0, done.stderr
    assert "MCC" in done.stdout

"""The programs in scripts/."""

import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a program of scripts/ in this process; returns what it prints. It must end without an error."""

    def run(name, *arguments):
        program = str(ROOT / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_train_cli_runs_one_phase_of_an_existing_run(run_script, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    run_script("train_cli_v2.py", f"run_dir={run}", "pipeline.phases=[phase2]", "phase2.n_thresholds=100")
    assert len((run / "phase2" / "threshold_sweep.csv").read_text().splitlines()) == 101


def test_few_labels_removes_the_labels_of_whole_groups_in_both_classes(run_script, scenes, tmp_path):
    out = tmp_path / "few"
    run_script("few_labels.py", scenes, out, "--keep", "0.25", "--seed", "1")
    files = [scenes / "index.csv", out / "labeled.csv", out / "unlabeled.csv"]
    dataset, labeled, unlabeled = (list(csv.DictReader(file.open())) for file in files)
    assert len(labeled) + len(unlabeled) == len(dataset)
    assert {row["group"] for row in labeled}.isdisjoint(row["group"] for row in unlabeled)
    assert "label" not in unlabeled[0]
    assert {row["label"] for row in labeled} == {"None", "Roadwork"}
    assert len({row["group"] for row in labeled}) == round(0.25 * len(dataset))  # every scene is its own group


def test_evaluate_cli_takes_the_path_of_bundle_json(run_script, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    bundle = run / "export" / "bundle.json"
    assert "MCC" in run_script("evaluate_cli.py", "--bundle", bundle, "evaluation.n_resamples=100")


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "printed"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}]}', "Found 1", 1, "CVE-1"),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', "", 0, "0 vulnerabilities"),
        ("", "ERROR:pip_audit._cli:requirement a is not pinned", 1, "a is not pinned"),
        ("", "No module named pip_audit", 1, "No module named pip_audit"),
        ("", "ERROR:pip_audit._cli:Tip: your network may be blocking this service.", 0, "unreachable"),
        ("", "requests.exceptions.ProxyError: HTTPSConnectionPool(host='pypi.org')", 0, "unreachable"),
    ],
)
def test_an_audit_is_skipped_only_without_a_network(monkeypatch, capsys, stdout, stderr, code, printed):
    process = subprocess.CompletedProcess([], 1, stdout, stderr)
    main = runpy.run_path(str(ROOT / "scripts" / "audit_dependencies.py"))["main"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: process)
    assert main() == code
    out = capsys.readouterr().out
    assert printed in out
    assert ("unreachable" in out) == (printed == "unreachable")

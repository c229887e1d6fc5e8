"""Settings of phase 2 that decide what is written."""

import shutil

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import read_json
from tests.conftest import TINY_MODEL


@pytest.fixture
def run(finished_run, tmp_path):
    return ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))


def test_without_the_sweep_curve_only_the_thresholds_are_written(run, command):
    phase2 = ["train", f"run_dir={run.output_dir}", *TINY_MODEL, "pipeline.phases=[phase2]"]
    assert run.threshold_sweep_csv.is_file()
    threshold = read_json(run.thresholds_json)["threshold"]
    code, _, err = command(*phase2, "phase2.save_sweep_curve=false")
    assert code == 0, err
    assert not run.threshold_sweep_csv.exists()
    assert not run.mcc_curve_plot.exists()
    assert read_json(run.thresholds_json)["threshold"] == threshold
    assert "(unchanged)" in command(*phase2, "phase2.save_sweep_curve=false")[1]
    assert command(*phase2)[0] == 0
    assert run.mcc_curve_plot.is_file()

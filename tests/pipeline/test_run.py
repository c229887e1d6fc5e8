import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.pipeline import run as running
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.run import resolve_run_config
from tests.conftest import TINY_MODEL

SCENES = ["scenes.count=48", "scenes.width=64", "scenes.height=64"]


@pytest.fixture
def run(tmp_path, command):
    """A run on scenes of its own, with its data phase done."""
    root = tmp_path / "run"
    code, out, err = command("train", f"run_dir={root}", *SCENES, *TINY_MODEL, "pipeline.phases=[data]")
    assert code == 0, err
    assert "48 procedural scenes, as data.root is not set" in out
    return ArtifactSchema(root)


def resolved(schema, *overrides):
    return resolve_run_config(compose_config([f"run_dir={schema.output_dir}", *overrides]), console=Console())


def test_a_run_keeps_its_data_when_the_command_names_none(run):
    before = run.splits_json.stat().st_mtime_ns
    config = resolved(run, "training=full", "training.epochs=3")
    assert config.data.root == str(run.scenes_dir)
    assert config.training.epochs == 3
    assert run.splits_json.stat().st_mtime_ns == before


def test_the_same_data_by_another_path_is_the_same(run, monkeypatch):
    monkeypatch.chdir(run.output_dir.parent)
    assert resolved(run, "data.root=run/scenes").data.root == "run/scenes"


def test_other_fractions_split_the_same_data_again(run, command):
    before = run.splits_json.read_bytes()
    fractions = ["data.fractions.train=0.5", "data.fractions.val_test=0.2"]
    code, _, err = command("train", f"run_dir={run.output_dir}", *SCENES, *fractions, "pipeline.phases=[data]")
    assert code == 0, err
    assert run.splits_json.read_bytes() != before


def test_nothing_is_drawn_for_phases_that_read_no_images(tmp_path):
    config = compose_config([f"run_dir={tmp_path / 'run'}", "pipeline.phases=[phase2]"])
    resolve_run_config(config, console=Console())
    assert not (tmp_path / "run").exists()


def test_settings_without_effect_are_named(run, command, tmp_path):
    further = tmp_path / "more"
    command("data", "scenes", further, *SCENES, "scenes.first_seed=90")
    overrides = ["phase4a.num_epochs=3", "phase5.folds=3", f"data.unlabeled=[{further}]", "loader.num_workers=0"]
    _, _, err = command("train", f"run_dir={run.output_dir}", *SCENES, *overrides, "pipeline.phases=[data]")
    warnings = [line.partition(" ")[2].strip() for line in err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "phase4a.num_epochs, phase5.folds have no effect on data",
        "data.unlabeled has no effect when phase4a_explora is not in pipeline.phases",
    ]


def test_an_evaluation_runs_no_other_phase_and_warns_of_a_request(tmp_path, monkeypatch, capsys):
    class NoEngine:
        def __init__(self, *_):
            self.run = lambda phases: None

    monkeypatch.setattr(running, "Engine", NoEngine)
    for phases in ([], ["pipeline.phases=[phase2,evaluate]"]):
        running._run_phase("evaluate", compose_config([f"run_dir={tmp_path}", *phases]), Console())
    assert capsys.readouterr().err.count("pipeline.phases has no effect on evaluate") == 1

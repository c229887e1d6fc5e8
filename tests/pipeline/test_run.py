import shutil

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.data.splitting.partition import make_folds
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.models.config import ModelConfig
from streetvision.pipeline import run as running
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.partition_data import partition_rows
from streetvision.pipeline.engine import phase_order
from streetvision.pipeline.phases import PHASES
from streetvision.pipeline.run import resolve_run_config
from streetvision.pipeline.settings import without_effect
from streetvision.training.config import TrainingConfig
from tests.conftest import TINY_MODEL
from tests.data.splitting.test_partition import FRACTIONS, index_of, row, ungrouped

SCENES = ["scenes.count=48", "scenes.width=64", "scenes.height=64"]


@pytest.fixture
def run(tmp_path, command):
    """A run on scenes of its own, with its data phase done."""
    root = tmp_path / "run"
    code, out, err = command("train", f"run_dir={root}", *SCENES, *TINY_MODEL, "pipeline.phases=[data]")
    assert code == 0, err
    assert "48 drawn scenes, as data.root is not set" in out
    return ArtifactSchema(root)


def resolved(schema, *overrides):
    return resolve_run_config(compose_config([f"run_dir={schema.output_dir}", *overrides]), console=Console())


def test_a_run_keeps_its_data_when_the_command_names_none(run):
    before = run.splits_json.stat().st_mtime_ns
    config = resolved(run, "training=full", "training.epochs=3")
    assert config.data.root == str(run.scenes_dir)
    assert config.training.epochs == 3
    assert run.splits_json.stat().st_mtime_ns == before


@pytest.mark.parametrize("failure", ["missing", "unusable"])
def test_a_run_keeps_its_data_after_a_failed_scan(two_places, command, tmp_path, failure):
    photos, line = two_places[0] / "photos", ["train", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    chosen = [r"data.group_pattern=([0-9]+)\.jpg", "loader.max_megapixels=7"]
    assert command(*line, f"data.root={photos}", *chosen, *TINY_MODEL)[0] == 0
    splits = (tmp_path / "run/splits.json").read_bytes()
    if failure == "missing":
        photos.rename(photos.with_name("unmounted"))
    else:
        for image in list(photos.rglob("*.jpg"))[:20]:
            image.write_bytes(b"damaged")
    for _ in range(2):
        code, out, err = command(*line)
        assert code == 2, err
        assert "drawn scenes" not in out
    assert (tmp_path / "run/splits.json").read_bytes() == splits
    config = resolved(ArtifactSchema(tmp_path / "run"))
    assert (config.data.root, config.data.group_pattern) == (str(photos), r"([0-9]+)\.jpg")
    assert config.loader.max_megapixels == 7


def test_a_run_keeps_its_data_settings_and_its_limit_when_the_photos_move(two_places, command, tmp_path):
    photos, line = two_places[0] / "photos", ["train", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]"]
    chosen = [r"data.group_pattern=([0-9]+)\.jpg", "loader.max_megapixels=150"]
    assert command(*line, f"data.root={photos}", *chosen, *TINY_MODEL)[0] == 0
    moved = f"data.root={photos.rename(tmp_path / 'moved')}"
    config = resolved(ArtifactSchema(tmp_path / "run"), moved)
    assert config.data.group_pattern == r"([0-9]+)\.jpg"
    assert config.loader.max_megapixels == 150
    assert resolved(ArtifactSchema(tmp_path / "run"), moved, "loader.max_megapixels=9").loader.max_megapixels == 9


def test_the_same_data_by_another_path_is_the_same(run, monkeypatch):
    monkeypatch.chdir(run.output_dir.parent)
    assert resolved(run, "data.root=run/scenes").data.root == str(run.scenes_dir)


@pytest.fixture
def two_places(tmp_path, command):
    """Two working directories, each with a data set photos of its own."""
    places = tmp_path / "a", tmp_path / "b"
    for seed, place in enumerate(places):
        command("data", "scenes", place / "photos", *SCENES, f"scenes.first_seed={1000 * seed}")
    return places


@pytest.mark.parametrize("root", ["photos", "photos/index.csv"])
@pytest.mark.parametrize("recorded_text", [False, True])
def test_a_run_keeps_its_data_in_another_working_directory(two_places, command, monkeypatch, root, recorded_text):
    here, elsewhere = two_places
    monkeypatch.chdir(here)
    assert command("train", f"data.root={root}", "run_dir=run", *TINY_MODEL, "pipeline.phases=[data]")[0] == 0
    schema = ArtifactSchema(here / "run")
    if recorded_text:  # as earlier versions did
        manifest = read_json(schema.manifest("data"))
        manifest["config"]["DataConfig"]["root"] = root
        write_json_atomic(schema.manifest("data"), manifest)
    monkeypatch.chdir(elsewhere)
    before = schema.splits_json.read_bytes()
    code, _, err = command("train", f"run_dir={schema.output_dir}", *TINY_MODEL, "pipeline.phases=[data]")
    assert code == 0, err
    assert schema.splits_json.read_bytes() == before
    assert resolved(schema, f"data.root={here / root}").data.root == str(here / root)
    code, _, err = command("train", f"run_dir={schema.output_dir}", f"data.root={root}", "pipeline.phases=[data]")
    assert code == 2
    assert schema.splits_json.read_bytes() == before


def test_paths_of_the_data_are_absolute(two_places, monkeypatch):
    monkeypatch.chdir(two_places[0])
    settings = ["data.unlabeled=[more]", "data.labels=labels", "data.coco.images=images", "data.coco.negatives=streets"]
    config = resolve_run_config(compose_config(["data.root=photos", *settings]), console=Console())
    data, here = config.data, two_places[0]
    assert data.root == str(here / "photos")
    assert (data.labels, data.unlabeled) == (here / "labels", (here / "more",))
    assert (data.coco.images, data.coco.negatives) == (here / "images", here / "streets")
    assert config.root.name == "photos"
    hub = compose_config(["data.root=hf://owner/name"])
    assert resolve_run_config(hub, console=Console()).data.root == "hf://owner/name"


def test_other_fractions_split_the_same_data_again(run, command):
    before = run.splits_json.read_bytes()
    fractions = ["data.fractions.train=0.5", "data.fractions.val_test=0.2"]
    code, _, err = command("train", f"run_dir={run.output_dir}", *SCENES, *fractions, "pipeline.phases=[data]")
    assert code == 0, err
    assert run.splits_json.read_bytes() != before


def test_folds_that_are_made_again_are_reported(capsys):
    index = index_of([*ungrouped(40, 0).rows, *(row(f"positive/{number}.png", 1) for number in range(5))])
    before = make_folds(index, fractions=FRACTIONS, folds=4, seed=0)
    folds = {entry.sha256: fold for entry, fold in zip(index.rows, before.folds, strict=True)}
    config = compose_config(["data.protocol=cross_fit"])

    def warnings(rows):
        partition_rows(
            index_of(rows),
            None,
            config.data,
            config.phase5.risk,
            protocol="cross_fit",
            roles={},
            folds=folds,
            progress=Console(),
        )
        return capsys.readouterr().err

    assert "made again" not in warnings(index.rows)
    lost = next(entry for entry in index.rows if entry.label == 1 and folds[entry.sha256] == 1)
    assert "made again" in warnings([entry for entry in index.rows if entry is not lost])


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


def test_settings_of_the_data_have_no_effect_without_its_phase(finished_run, command, tmp_path):
    root = shutil.copytree(finished_run, tmp_path / "run")
    ignored = ["data.class_names=[a,b]", "phase2.n_resamples=100"]
    _, _, err = command("train", f"run_dir={root}", "pipeline.phases=[phase2]", *ignored)
    warnings = [line.partition(" ")[2].strip() for line in err.splitlines() if line.startswith("warning")]
    assert warnings == ["data.class_names has no effect on phase2"]


def test_the_risk_has_an_effect_on_the_data_which_it_chooses_the_protocol_of():
    read = running._read_by(phase_order(["data"], PHASES))
    assert without_effect(["phase5.risk.alpha", "phase5.folds"], read) == ["phase5.folds"]


def test_the_group_of_phase_4b_has_the_effect_of_its_section():
    assert without_effect(["phase4b"], {TrainingConfig}) == []
    assert without_effect(["phase4b"], {ModelConfig}) == ["phase4b"]


def test_an_evaluation_runs_no_other_phase_and_warns_of_a_request(tmp_path, monkeypatch, capsys):
    class NoEngine:
        def __init__(self, *_):
            self.run = lambda phases: None

    monkeypatch.setattr(running, "Engine", NoEngine)
    for phases in ([], ["pipeline.phases=[phase2,evaluate]"]):
        running._run_phase("evaluate", compose_config([f"run_dir={tmp_path}", *phases]), Console())
    assert capsys.readouterr().err.count("pipeline.phases has no effect on evaluate") == 1

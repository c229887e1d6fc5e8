"""streetvision dev ablate with a table of systems, through the command line, on tiny data."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from yaml import safe_dump

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.experiments import systems as systems_module
from streetvision.experiments.peers import PEERS, PeerTask
from streetvision.experiments.systems_page import SystemRow, as_markdown, minutes_plot
from streetvision.experiments.systems_table import SystemsTable
from streetvision.experiments.tables import read_table
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.data.scan_data import scan_data
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from tests.conftest import TINY_MODEL

TIMM = ["model.backbone.source=timm", "model.backbone.name=test_vit"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone that all tools can load, with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def table(tmp_path, systems, **changes):
    content = {
        "title": "t",
        "folds": 2,
        "common": [*TINY_MODEL, "phase2.n_resamples=100", "phase5.folds=2"],
        "data": {
            "tiny": {"settings": ["data.root=$TINY_SCENES"]},
            "absent": {"settings": ["data.root=$ABSENT_SCENES"]},
        },
        "systems": systems,
    }
    file = tmp_path / "mine.yaml"
    file.write_text(safe_dump(content | changes))
    return file


@pytest.mark.slow
@pytest.mark.long
def test_systems_are_compared_on_the_same_folds(scenes, tmp_path, command, monkeypatch):
    monkeypatch.setenv("TINY_SCENES", str(scenes))
    monkeypatch.delenv("ABSENT_SCENES", raising=False)
    systems = [
        {"name": "first"},
        {"name": "regression", "peer": "scikit-learn"},
        {"name": "broken", "settings": ["model.head.kind=mlp", "training.learning_rate=1e30"]},
    ]
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text("before\n<!-- ablate mine -->\n<!-- end -->\nafter\n")
    code, text, err = command("dev", "ablate", table(tmp_path, systems), "--out", out, "--page", page, "--jobs", 2)
    assert code == 2, text + err
    assert "ABSENT_SCENES is not set" in text + err
    rows = json.loads((out / "systems.json").read_text())["rows"]
    assert [row["system"] for row in rows] == [system["name"] for system in systems]
    first, regression, broken = rows
    assert first["mcc_difference"] is None
    assert regression["mcc_difference"] == pytest.approx(regression["mcc"] - first["mcc"])
    assert broken["mcc"] is None
    assert "the loss is" in broken["missing"]
    for row in (first, regression):
        assert row["images"] == 160
        assert row["mcc_low"] <= row["mcc"] <= row["mcc_high"]
        assert row["minutes"] > 0
        assert row["memory_gb"] > 0
    assert "| regression |" in page.read_text()
    assert (tmp_path / "mine.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(csv.DictReader((out / "systems.csv").open()))) == 3
    # The figures are those of the predictions of both folds.
    records = [json.loads(path.read_text()) for path in sorted((out / "cells/tiny/regression").glob("*.cell.json"))]
    assert sum(len(record["probabilities"]) for record in records) == 160
    # The same command runs the failed cells only.
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.cell.json")}
    code, text, _ = command("dev", "ablate", table(tmp_path, systems), "--out", out, "--system", "regression")
    assert code == 0, text
    assert "4 cells, 4 of them done" in text
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.cell.json")}


def test_other_weights_in_the_same_file_are_another_cell(scenes, weights, tmp_path, command, monkeypatch):
    monkeypatch.setenv("TINY_SCENES", str(scenes))
    monkeypatch.delenv("ABSENT_SCENES", raising=False)
    planned, file = [], tmp_path / "vit.safetensors"
    monkeypatch.setattr(systems_module, "execute_cells", lambda cells, *_: planned.append(cells) or {})
    common = [*TIMM, f"model.backbone.weights={file}", "data.protocol=split"]
    tools = table(tmp_path, [{"name": "first"}, {"name": "regression", "peer": "scikit-learn"}], common=common)
    for content in (weights.read_bytes(), b"other"):
        file.write_bytes(content)
        command("dev", "ablate", tools, "--out", tmp_path / "out")
    before, after = ([cell.key for cell in cells] for cells in planned)
    assert len(before) == len(after) == 4
    assert not set(before) & set(after)


def test_a_data_root_replaces_the_data_sets_of_every_system(scenes, tmp_path, command, monkeypatch):
    planned = []
    monkeypatch.setattr(systems_module, "execute_cells", lambda cells, *_: planned.extend(cells) or {})
    systems = [{"name": "first", "data": ["tiny"]}, {"name": "regression", "peer": "scikit-learn", "data": ["absent"]}]
    command("dev", "ablate", table(tmp_path, systems), f"data.root={scenes}", "--out", tmp_path / "out")
    assert [cell.system.name for cell in planned] == ["first", "first", "regression", "regression"]


@pytest.mark.parametrize("setting", ["cross_validation.folds=3", "cross_validation.leave_out=source", "run_dir=here"])
def test_settings_that_a_table_of_systems_replaces_are_refused(tmp_path, command, setting):
    file = table(tmp_path, [{"name": "a"}, {"name": "b"}])
    code, _, err = command("dev", "ablate", file, setting, "--out", tmp_path / "out")
    assert code == 2
    assert "has no effect on this table" in err
    assert not (tmp_path / "out").exists()


def test_phases_that_make_no_bundle_are_refused_for_a_system(scenes, tmp_path, command):
    file = table(tmp_path, [{"name": "a"}, {"name": "b", "settings": ["pipeline.phases=[phase1,phase2]"]}])
    code, _, err = command("dev", "ablate", file, f"data.root={scenes}", "--out", tmp_path / "out")
    assert code == 2
    assert "system 'b'" in err


def test_an_interrupted_cell_of_a_tool_starts_from_its_images(scenes, tmp_path, command, monkeypatch):
    planned, left = [], []
    monkeypatch.setattr(systems_module, "execute_cells", lambda cells, *_: planned.extend(cells) or {})
    tools = table(tmp_path, [{"name": "first"}, {"name": "regression", "peer": "scikit-learn"}])
    command("dev", "ablate", tools, f"data.root={scenes}", "--out", tmp_path / "out")
    cell = next(cell for cell in planned if cell.system.peer)
    (cell.chain.run_folder / "features").mkdir(parents=True)
    monkeypatch.setattr(systems_module, "write_output_to", lambda log: None)

    def predict(task):
        left.extend(task.folder.iterdir())
        return np.full(len(task.test), 0.5)

    monkeypatch.setitem(systems_module.PEERS, "scikit-learn", replace(PEERS["scikit-learn"], predict=predict))
    systems_module.run_cell(cell, 1)
    assert left == []
    assert cell.record().seconds is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.version is not None])
def test_every_tool_learns_and_predicts(name, weights, tmp_path):
    write_scenes(tmp_path / "scenes", SceneConfig(count=24, width=64, height=64), Silent())
    config = compose_config(
        [f"data.root={tmp_path / 'scenes'}", *TIMM, f"model.backbone.weights={weights}", "loader.num_workers=0"]
    )
    schema = ArtifactSchema(tmp_path / "run")
    schema.ensure_output_dir()
    index = scan_data(Context("data", schema, Silent(), config.sections(), pytest.fail)).index
    task = PeerTask(index.rows[:18], index.rows[18:], index.root, config, epochs=1, folder=tmp_path / "peer")
    task.folder.mkdir()
    p = PEERS[name].predict(task)
    assert p.shape == (6,)
    assert np.isfinite(p).all()
    assert ((p >= 0) & (p <= 1)).all()


def test_a_tool_needs_weights_that_it_can_load(tmp_path):
    task = PeerTask((), (), tmp_path, compose_config([]), epochs=1, folder=tmp_path)
    with pytest.raises(ConfigError, match="cannot load"):
        PEERS["timm"].predict(task)


def test_a_system_that_has_no_result_is_in_the_table():
    rows = [SystemRow("d", "a", 10, 5, missing="out of memory"), SystemRow("d", "b", 10, 5, missing="no time")]
    text = as_markdown(rows, folds=5)
    assert "no result: out of memory" in text
    assert minutes_plot(rows)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": [{"name": "a"}]}, "at least 2"),
        ({"systems": [{"name": "a"}, {"name": "a"}]}, "'a' occurs twice"),
        ({"systems": [{"name": "lr=1"}, {"name": "LR-1"}]}, "'lr=1' and 'LR-1'"),
        ({"data": {"a b": {"settings": []}, "a,b": {"settings": []}}}, "'a b' and 'a,b'"),
        ({"systems": [{"name": "a"}, {"name": "b", "peer": "tim"}]}, "did you mean 'timm'"),
        ({"systems": [{"name": "a"}, {"name": "b", "peer": "timm", "settings": ["training=frozen"]}]}, "no settings"),
        ({"systems": [{"name": "a"}, {"name": "b", "data": ["tin"]}]}, "did you mean 'tiny'"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"data": {"tiny": {"settings": [], "groups": 0}}}, "greater than 0"),
    ],
)
def test_an_invalid_table_is_rejected(tmp_path, changes, message):
    file = table(tmp_path, **({"systems": [{"name": "a"}, {"name": "b"}]} | changes))
    with pytest.raises(ConfigError, match=message):
        read_table(str(file))


def test_options_of_the_other_kind_of_table_are_refused(tmp_path, command):
    file = table(tmp_path, [{"name": "a"}, {"name": "b"}])
    for arguments in ([file, "--pair", "a"], [file, "--seeds", "2"], ["smoke", "--system", "a"]):
        code, _, err = command("dev", "ablate", *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert "--system" in err
    code, _, err = command("dev", "ablate", file, "--system", "c", "--out", tmp_path / "out")
    assert code == 2
    assert "system" in err


def test_the_packaged_systems_compose(monkeypatch):
    monkeypatch.setenv("STREETVISION_REAL_DATA", "real")
    results = read_table("results")
    assert isinstance(results, SystemsTable)
    for data in results.data.values():
        for system in results.systems:
            compose_config([*results.common, *data.settings, *system.settings])

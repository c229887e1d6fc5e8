"""The engine on toy phases: order, freshness, damage, and what is missing."""

import json
from dataclasses import replace
from typing import Annotated

import pytest
from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.phase import Outcome, Phase
from streetvision.contracts.settings import RESULT_NEUTRAL
from streetvision.io.atomic import write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import read_manifest
from streetvision.pipeline.console import Console
from streetvision.pipeline.engine import Engine, phase_order


class Setting(BaseModel):
    value: int = 0
    workers: Annotated[int, RESULT_NEUTRAL] = 0


class Other(BaseModel):
    value: int = 0


class House:
    """Three toy phases, each a text file from the one before; it counts how often each ran."""

    def __init__(self, root):
        self.schema = ArtifactSchema(root)
        self.ran = []
        self.settings = Setting()
        self.other = Other()
        self.outside = "a" * 64
        self.phases = {
            "phase1": self.phase("phase1", (), "phase1_checkpoint", Setting),
            "phase2": self.phase("phase2", ("phase1_checkpoint",), "thresholds_json", Other),
            "phase5": self.phase("phase5", ("thresholds_json",), "scrc_params_json", Other),
        }
        self.phases["phase1"] = replace(self.phases["phase1"], external_digest=lambda _: self.outside)
        self.phases["data"] = Phase("data", "toy", (), (), (), lambda _: Outcome("nothing to split"))

    def phase(self, name, needs, makes, kind):
        def run(context):
            self.ran.append(name)
            before = "".join(self.schema.path(n).read_text() for n in needs)
            write_text_atomic(self.schema.path(makes), f"{before}{name}:{context.settings(kind).value};")
            return Outcome(f"{name} done")

        return Phase(name, "toy", (kind,), needs, (makes,), run)

    def run(self, *names):
        self.ran.clear()
        configs = {Setting: self.settings, Other: self.other}
        Engine(self.schema, self.phases, configs, Console()).run(phase_order(names, self.phases))
        return self.ran


@pytest.fixture
def house(tmp_path):
    return House(tmp_path / "run")


def test_phases_run_in_the_order_of_the_data_however_they_are_named(house):
    assert house.run("phase5", "phase1", "phase2") == ["phase1", "phase2", "phase5"]
    assert house.schema.scrc_params_json.read_text() == "phase1:0;phase2:0;phase5:0;"


def test_what_is_unchanged_is_skipped_and_still_serves(house, capsys):
    house.run("phase1", "phase2")
    assert house.run("phase1", "phase2", "phase5") == ["phase5"]
    assert "(unchanged)" in capsys.readouterr().out


def test_a_phase_runs_alone_in_a_run_that_has_what_it_needs(house):
    house.run("phase1")
    assert house.run("phase2") == ["phase2"]


def test_a_changed_setting_runs_its_phase_and_those_behind_it(house):
    house.run("phase1", "phase2", "phase5")
    house.other = Other(value=3)
    assert house.run("phase1", "phase2", "phase5") == ["phase2", "phase5"]
    assert house.schema.scrc_params_json.read_text() == "phase1:0;phase2:3;phase5:3;"


def test_a_setting_of_how_and_not_of_what_runs_nothing_again(house):
    house.settings = Setting(workers=1)
    house.run("phase1")
    recorded = read_manifest(house.schema.manifest("phase1"))
    house.settings = Setting(workers=2)
    assert house.run("phase1") == []
    assert recorded.config == {"Setting": {"value": 0, "workers": 1}}


def test_a_changed_input_from_outside_is_noticed(house):
    house.run("phase1", "phase2")
    house.outside = "b" * 64
    assert house.run("phase1", "phase2") == ["phase1"]


def test_changed_code_is_noticed(house, monkeypatch):
    house.run("phase1")
    monkeypatch.setattr("streetvision.pipeline.engine.code_sha256", lambda: "c" * 64)
    assert house.run("phase1") == ["phase1"]


@pytest.mark.parametrize("damage", [lambda p: p.write_text("other"), lambda p: p.unlink()])
def test_a_damaged_artifact_is_made_again(house, damage):
    house.run("phase1", "phase2")
    damage(house.schema.phase1_checkpoint)
    assert house.run("phase1", "phase2") == ["phase1"]


def test_a_damaged_artifact_of_a_phase_that_was_not_asked_for_is_an_error(house):
    house.run("phase1")
    house.schema.phase1_checkpoint.write_text("other")
    with pytest.raises(ArtifactError, match="changed or removed after phase1 wrote it") as caught:
        house.run("phase2")
    assert "pipeline.phases=[phase1,phase2]" in caught.value.hint


def test_a_missing_artifact_names_its_maker(house):
    with pytest.raises(ArtifactError, match=r"phase2 needs phase1/model_best\.pth of phase1") as caught:
        house.run("phase2")
    assert "pipeline.phases=[phase1,phase2]" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"phase": NaN}'])
def test_a_damaged_manifest_counts_as_none(house, text):
    house.run("phase1")
    house.schema.manifest("phase1").write_text(text)
    assert house.run("phase1") == ["phase1"]


def test_a_phase_that_breaks_leaves_no_manifest_and_runs_again(house):
    house.run("phase1", "phase2")

    def fail(_):
        house.schema.thresholds_json.write_text("half")
        raise RuntimeError("boom")

    whole = house.phases["phase2"]
    house.phases["phase2"] = replace(whole, run=fail)
    house.other = Other(value=1)
    with pytest.raises(RuntimeError, match="boom"):
        house.run("phase2")
    assert not house.schema.manifest("phase2").exists()
    house.phases["phase2"] = whole
    assert house.run("phase2") == ["phase2"]


def test_a_phase_that_does_not_write_what_it_makes_is_an_error(house):
    house.phases["phase1"] = replace(house.phases["phase1"], run=lambda _: Outcome("nothing"))
    with pytest.raises(ArtifactError, match="should exist"):
        house.run("phase1")


def test_an_unknown_phase_lists_those_that_exist(house):
    with pytest.raises(ConfigError, match="did you mean 'phase2'") as caught:
        house.run("phase22")
    assert "data, phase1, phase2, phase5" in caught.value.hint


def test_reading_a_section_without_declaring_it_is_a_bug(house):
    house.phases["phase1"] = replace(
        house.phases["phase1"], run=lambda context: Outcome(str(context.settings(Other).value))
    )
    with pytest.raises(AssertionError, match="without declaring"):
        house.run("phase1")


def test_a_run_folder_has_one_writer(house):
    house.schema.ensure_dirs()
    with run_lock(house.schema.lock_file), pytest.raises(ArtifactError, match="in use by process"):
        house.run("phase1")


def test_temps_of_a_killed_process_are_cleared(house):
    stray = house.schema.output_dir / "phase1" / ".model_best.pth.99999999-0123abcd.tmp"
    stray.parent.mkdir(parents=True)
    stray.write_text("half")
    house.run("phase1")
    assert not stray.exists()


def test_an_input_that_changes_while_a_phase_runs_is_recorded_as_it_was_read(house):
    house.run("phase1")
    before = house.schema.phase1_checkpoint.read_text()

    def run(_):
        write_text_atomic(house.schema.thresholds_json, "from the old input")
        house.schema.phase1_checkpoint.write_text("new")
        return Outcome("done")

    house.phases["phase2"] = replace(house.phases["phase2"], run=run)
    house.run("phase2")
    manifest = json.loads(house.schema.manifest("phase2").read_text())
    assert manifest["inputs"]["phase1/model_best.pth"]["bytes"] == len(before)


def test_the_manifest_records_inputs_and_outputs(house):
    house.run("phase1", "phase2")
    manifest = json.loads(house.schema.manifest("phase2").read_text())
    assert list(manifest["inputs"]) == ["phase1/model_best.pth"]
    assert list(manifest["outputs"]) == ["phase2/thresholds.json"]
    assert manifest["config"] == {"Other": {"value": 0}}
    assert {"python", "torch", "streetvision"} <= set(manifest["versions"])

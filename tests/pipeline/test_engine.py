"""The engine on toy phases: order, skipping of unchanged phases, damaged and missing artifacts."""

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


class ToyRun:
    """Three toy phases that append to a text file; `executed` lists the phases of the last run."""

    def __init__(self, root):
        self.schema = ArtifactSchema(root)
        self.executed = []
        self.settings = Setting()
        self.other = Other()
        self.external = "a" * 64
        self.phases = {
            "phase1": self.phase("phase1", (), "phase1_checkpoint", Setting),
            "phase2": self.phase("phase2", ("phase1_checkpoint",), "thresholds_json", Other),
            "phase5": self.phase("phase5", ("thresholds_json",), "scrc_params_json", Other),
        }
        self.phases["phase1"] = replace(self.phases["phase1"], external_digest=lambda _: self.external)
        self.phases["data"] = Phase("data", "toy", (), (), (), lambda _: Outcome("nothing to split"))

    def phase(self, name, needs, makes, section):
        def run(context):
            self.executed.append(name)
            before = "".join(self.schema.path(n).read_text() for n in needs)
            write_text_atomic(self.schema.path(makes), f"{before}{name}:{context.settings(section).value};")
            return Outcome(f"{name} done")

        return Phase(name, "toy", (section,), needs, (makes,), run)

    def run(self, *names):
        self.executed.clear()
        configs = {Setting: self.settings, Other: self.other}
        Engine(self.schema, self.phases, configs, Console()).run(phase_order(names, self.phases))
        return self.executed


@pytest.fixture
def toy_run(tmp_path):
    return ToyRun(tmp_path / "run")


def test_phases_run_in_dependency_order(toy_run):
    assert toy_run.run("phase5", "phase1", "phase2") == ["phase1", "phase2", "phase5"]
    assert toy_run.schema.scrc_params_json.read_text() == "phase1:0;phase2:0;phase5:0;"


def test_unchanged_phases_are_skipped_and_their_artifacts_are_used(toy_run, capsys):
    toy_run.run("phase1", "phase2")
    assert toy_run.run("phase1", "phase2", "phase5") == ["phase5"]
    assert "(unchanged)" in capsys.readouterr().out


def test_one_phase_runs_alone_when_its_inputs_exist(toy_run):
    toy_run.run("phase1")
    assert toy_run.run("phase2") == ["phase2"]


def test_a_changed_setting_repeats_its_phase_and_the_phases_that_depend_on_it(toy_run):
    toy_run.run("phase1", "phase2", "phase5")
    toy_run.other = Other(value=3)
    assert toy_run.run("phase1", "phase2", "phase5") == ["phase2", "phase5"]
    assert toy_run.schema.scrc_params_json.read_text() == "phase1:0;phase2:3;phase5:3;"


def test_a_result_neutral_setting_repeats_no_phase(toy_run):
    toy_run.settings = Setting(workers=1)
    toy_run.run("phase1")
    recorded = read_manifest(toy_run.schema.manifest("phase1"))
    toy_run.settings = Setting(workers=2)
    assert toy_run.run("phase1") == []
    assert recorded.config == {"Setting": {"value": 0, "workers": 1}}


def test_a_changed_external_input_repeats_the_phase(toy_run):
    toy_run.run("phase1", "phase2")
    toy_run.external = "b" * 64
    assert toy_run.run("phase1", "phase2") == ["phase1"]


def test_changed_code_repeats_the_phase(toy_run, monkeypatch):
    toy_run.run("phase1")
    monkeypatch.setattr("streetvision.pipeline.engine.code_sha256", lambda: "c" * 64)
    assert toy_run.run("phase1") == ["phase1"]


@pytest.mark.parametrize("damage", [lambda p: p.write_text("other"), lambda p: p.unlink()])
def test_a_damaged_artifact_is_written_again(toy_run, damage):
    toy_run.run("phase1", "phase2")
    damage(toy_run.schema.phase1_checkpoint)
    assert toy_run.run("phase1", "phase2") == ["phase1"]


def test_a_damaged_artifact_of_another_phase_is_an_error(toy_run):
    toy_run.run("phase1")
    toy_run.schema.phase1_checkpoint.write_text("other")
    with pytest.raises(ArtifactError, match="changed or removed after phase1 wrote it") as caught:
        toy_run.run("phase2")
    assert (
        f"streetvision train run_dir={toy_run.schema.output_dir} 'pipeline.phases=[phase1,phase2]'" in caught.value.hint
    )


def test_a_missing_artifact_error_names_its_phase(toy_run):
    with pytest.raises(ArtifactError, match=r"phase2 needs phase1/model_best\.pth of phase1") as caught:
        toy_run.run("phase2")
    assert (
        f"streetvision train run_dir={toy_run.schema.output_dir} 'pipeline.phases=[phase1,phase2]'" in caught.value.hint
    )


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"phase": NaN}'])
def test_a_damaged_manifest_counts_as_missing(toy_run, text):
    toy_run.run("phase1")
    toy_run.schema.manifest("phase1").write_text(text)
    assert toy_run.run("phase1") == ["phase1"]


def test_a_failed_phase_runs_again_and_what_it_has_written_is_not_used(toy_run):
    toy_run.run("phase1", "phase2")

    def fail(_):
        toy_run.schema.thresholds_json.write_text("partial")
        raise RuntimeError("boom")

    working = toy_run.phases["phase2"]
    toy_run.phases["phase2"] = replace(working, run=fail)
    toy_run.other = Other(value=1)
    with pytest.raises(RuntimeError, match="boom"):
        toy_run.run("phase2")
    toy_run.phases["phase2"] = working
    with pytest.raises(ArtifactError, match="changed or removed"):
        toy_run.run("phase5")
    assert toy_run.run("phase2") == ["phase2"]


def test_a_phase_that_failed_before_it_wrote_anything_leaves_its_earlier_result(toy_run):
    toy_run.run("phase1")
    toy_run.phases["phase2"] = replace(working := toy_run.phases["phase2"], run=lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toy_run.run("phase2")
    toy_run.phases["phase2"] = working
    toy_run.run("phase2")
    toy_run.settings, toy_run.phases["phase1"] = (
        Setting(value=7),
        replace(toy_run.phases["phase1"], run=lambda _: 1 / 0),
    )
    with pytest.raises(ZeroDivisionError):
        toy_run.run("phase1")
    assert read_manifest(toy_run.schema.manifest("phase1")).config["Setting"]["value"] == 0
    assert toy_run.run("phase5") == ["phase5"]


def test_files_that_an_earlier_run_of_the_phase_has_written_and_this_one_has_not_are_removed(toy_run):
    plot, foreign = toy_run.schema.phase1_dir / "plot.png", toy_run.schema.output_dir / "notes.txt"
    working = toy_run.phases["phase1"]

    def run(context):
        outcome = working.run(context)
        plot.write_text("plot")
        foreign.write_text("of the user")
        return replace(outcome, extra_outputs=(plot, foreign))

    toy_run.phases["phase1"] = replace(working, run=run)
    toy_run.run("phase1")
    toy_run.phases["phase1"], toy_run.settings = working, Setting(value=1)
    assert toy_run.run("phase1") == ["phase1"]
    assert not plot.exists()
    assert toy_run.schema.phase1_checkpoint.exists()
    assert foreign.exists()  # outside the folder of the phase


def test_a_phase_that_does_not_write_its_artifacts_is_an_error(toy_run):
    toy_run.phases["phase1"] = replace(toy_run.phases["phase1"], run=lambda _: Outcome("nothing"))
    with pytest.raises(ArtifactError, match="should exist"):
        toy_run.run("phase1")


def test_an_unknown_phase_is_an_error_that_lists_the_phases(toy_run):
    with pytest.raises(ConfigError, match="did you mean 'phase2'") as caught:
        toy_run.run("phase22")
    assert "data, phase1, phase2, phase5" in caught.value.hint


def test_reading_a_section_without_declaring_it_is_a_bug(toy_run):
    toy_run.phases["phase1"] = replace(
        toy_run.phases["phase1"], run=lambda context: Outcome(str(context.settings(Other).value))
    )
    with pytest.raises(AssertionError, match="without declaring"):
        toy_run.run("phase1")


def test_a_run_folder_has_one_writer(toy_run):
    toy_run.schema.ensure_dirs()
    with run_lock(toy_run.schema.lock_file), pytest.raises(ArtifactError, match="in use by process"):
        toy_run.run("phase1")


def test_temporary_files_of_a_killed_process_are_removed(toy_run):
    stray = toy_run.schema.output_dir / "phase1" / ".model_best.pth.99999999-0123abcd.tmp"
    stray.parent.mkdir(parents=True)
    stray.write_text("partial")
    toy_run.run("phase1")
    assert not stray.exists()


def test_the_manifest_records_an_input_as_it_was_before_the_phase(toy_run):
    toy_run.run("phase1")
    before = toy_run.schema.phase1_checkpoint.read_text()

    def run(_):
        write_text_atomic(toy_run.schema.thresholds_json, "from the old input")
        toy_run.schema.phase1_checkpoint.write_text("new")
        return Outcome("done")

    toy_run.phases["phase2"] = replace(toy_run.phases["phase2"], run=run)
    toy_run.run("phase2")
    manifest = json.loads(toy_run.schema.manifest("phase2").read_text())
    assert manifest["inputs"]["phase1/model_best.pth"]["bytes"] == len(before)


def test_the_manifest_records_inputs_and_outputs(toy_run):
    toy_run.run("phase1", "phase2")
    manifest = json.loads(toy_run.schema.manifest("phase2").read_text())
    assert list(manifest["inputs"]) == ["phase1/model_best.pth"]
    assert list(manifest["outputs"]) == ["phase2/thresholds.json"]
    assert manifest["config"] == {"Other": {"value": 0}}
    assert {"python", "torch", "streetvision"} <= set(manifest["versions"])

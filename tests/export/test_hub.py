"""The export for the Hugging Face Hub: a model card with valid metadata, and the unchanged bundle."""

import shutil
from dataclasses import replace

import pytest
import yaml

from streetvision import load_bundle
from streetvision.bundle.format import read_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.export.hub import Card, model_card
from streetvision.io.atomic import read_json
from tests.conftest import edit_bundle_json


def metadata(readme):
    _, head, body = readme.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_has_the_metrics_of_the_evaluation_and_the_bundle_loads(finished_run, command, scenes, tmp_path):
    out, bundle = tmp_path / "hub", finished_run / "export"
    arguments = [
        "export",
        "--bundle",
        bundle,
        "--out",
        out,
        "--format",
        "hub",
        "--name",
        "ours: #1",
        "--license",
        "mit",
    ]
    code, output, err = command(*arguments)
    assert code == 0, err
    assert "warning" not in output + err
    head, body = metadata((out / "README.md").read_text())
    report = read_json(ArtifactSchema(finished_run).evaluation_report_json)
    assert (head["license"], head["pipeline_tag"]) == ("mit", "image-classification")
    (entry,) = head["model-index"]
    values = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert values["mcc"] == round(report["metrics"]["mcc"]["estimate"], 4)
    mcc = report["metrics"]["mcc"]
    assert f"| mcc | {mcc['estimate']:.3f} | {mcc['low']:.3f} to {mcc['high']:.3f} |" in body
    image = sorted((scenes / "images").iterdir())[0]
    assert load_bundle(out / "bundle").predict(image) == load_bundle(bundle).predict(image)
    code, _, err = command(*arguments)
    assert code == 2
    assert "is not an empty folder" in err


@pytest.mark.parametrize("name", ["none", "platt"])
def test_the_card_says_calibrated_only_if_the_bundle_is(finished_run, name):
    bundle = read_bundle(finished_run / "export")
    params = bundle.manifest.policy.scrc_params
    calibrator = params.calibrator.model_copy(update={"name": name})
    policy = bundle.manifest.policy.model_copy(
        update={"scrc_params": params.model_copy(update={"calibrator": calibrator})}
    )
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"policy": policy}))
    head, body = metadata(model_card(bundle, Card(name="ours", license="mit"), None))
    assert ("calibrated" in head["tags"], "calibrated probability" in body) == (name != "none", name != "none")


def test_a_folder_with_files_of_the_system_is_empty(finished_run, command, tmp_path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("")
    arguments = ["export", "--bundle", finished_run / "export", "--out", tmp_path, "--format", "hub"]
    code, _, err = command(*arguments)
    assert code == 0, err
    (tmp_path / "bundle").rename(tmp_path / "notes")
    (tmp_path / "README.md").unlink()
    assert command(*arguments)[0] == 2


@pytest.mark.parametrize("form", ["hub", "miner"])
def test_an_export_into_the_bundle_is_refused(finished_run, command, tmp_path, form):
    bundle = shutil.copytree(finished_run, tmp_path / "run") / "export"
    code, _, err = command("export", "--bundle", bundle, "--out", bundle / form, "--format", form)
    assert code == 2
    assert "must be outside the bundle" in err
    assert not (bundle / form).exists()


def test_metrics_of_another_bundle_are_not_used(finished_run, command, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    edit_bundle_json(run / "export", lambda content: content["versions"].update(streetvision="9"))
    code, _, err = command("export", "--bundle", run / "export", "--out", tmp_path / "hub", "--format", "hub")
    assert code == 0, err
    assert "the model card has no metrics" in err
    assert "license: other" in err
    head, body = metadata((tmp_path / "hub" / "README.md").read_text())
    assert "model-index" not in head
    assert "has not been evaluated" in body


def test_an_invalid_report_is_a_user_error(finished_run, command, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    ArtifactSchema(run).evaluation_report_json.write_text("{}")
    code, _, err = command("export", "--bundle", run / "export", "--out", tmp_path / "hub", "--format", "hub")
    assert code == 2
    assert "evaluation_report.json': provenance: Field required" in err
    assert not (tmp_path / "hub").exists()


def test_an_option_without_effect_in_the_format_is_a_user_error(finished_run, command, tmp_path):
    arguments = ["export", "--bundle", finished_run / "export", "--out", tmp_path / "out", "--format"]
    for format_name, option in (("hub", "--hotkey"), ("hub", "--version"), ("miner", "--license")):
        code, _, err = command(*arguments, format_name, option, "x")
        assert code == 2
        assert f"{option} has no effect with --format {format_name}" in err

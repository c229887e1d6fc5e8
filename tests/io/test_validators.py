"""A bundle in which anything was changed is refused, and the error names what."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import ArtifactError
from streetvision.io.validators import BundleValidator, PolicyValidator


@pytest.fixture
def export(finished_run, tmp_path):
    folder = shutil.copytree(finished_run / "export", tmp_path / "export")
    BundleValidator().validate(folder)
    return folder


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_a_sealed_file(finished_run, tmp_path, data):
    folder = tmp_path / "export"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished_run / "export", folder)
    sealed = json.loads((folder / "bundle.json").read_text())["files"]
    name = data.draw(st.sampled_from(sorted(sealed)))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        BundleValidator().validate(folder)


@pytest.mark.parametrize("name", ["../model.pth", "/etc/passwd", "a/b.pth", "", ".", "..", "a\\b"])
def test_no_name_leaves_the_folder(export, name):
    def move(content):
        content["files"][name] = content["files"]["model.pth"]

    edit(export / "bundle.json", move)
    with pytest.raises(ArtifactError, match="only plain file names"):
        BundleValidator().validate(export)


def test_a_link_is_no_file(export, tmp_path):
    (export / "model.pth").rename(tmp_path / "model.pth")
    (export / "model.pth").symlink_to(tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match=r"'model\.pth', and there is no such file"):
        BundleValidator().validate(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(schema_version=2), "schema_version"),
        (lambda b: b.pop("class_names"), "class_names"),
        (lambda b: b["policy"]["scrc_params"].update(threshold=1.5), "policy.*threshold"),
        (lambda b: b["policy"].update(policy_type="other"), "policy"),
        (lambda b: b["files"].pop("model.pth"), "model_checkpoint names 'model.pth'"),
        (lambda b: b["files"]["model.pth"].update(bytes=10**12), r"at most 64 files of \d+ bytes"),
        (
            lambda b: b.update(files={f"{i}": b["files"]["model.pth"] for i in range(65)} | b["files"]),
            "at most 64 files",
        ),
    ],
)
def test_a_field_that_is_wrong_is_named(export, change, message):
    edit(export / "bundle.json", change)
    with pytest.raises(ArtifactError, match=message):
        BundleValidator().validate(export)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda p: p.pop("scores"), "scores"),
        (lambda p: p["scrc_params"].pop("calibrator"), "calibrator"),
        (lambda p: p.update(policy_type="none"), "policy_type|document"),
        (lambda p: p["scores"].update(sha256="short"), "sha256"),
    ],
)
def test_a_policy_names_file_and_field(finished_run, tmp_path, change, field):
    path = shutil.copy(finished_run / "phase5_scrc" / "scrc_params.json", tmp_path / "scrc_params.json")
    PolicyValidator().validate(path)
    edit(path, change)
    with pytest.raises(ArtifactError, match=rf"scrc_params\.json.*({field})"):
        PolicyValidator().validate(path)

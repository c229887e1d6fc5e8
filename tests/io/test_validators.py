"""A bundle in which anything was changed is refused, and the error names what."""

import json
import os
import re
import shutil

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streetvision.bundle.format import read_bundle, write_bundle
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import ScrcPolicy
from streetvision.io.atomic import sha256_file, write_json_atomic
from streetvision.io.validators import BundleValidator, PolicyValidator
from tests.conftest import reseal
from tests.contracts.test_policies import SCRC


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A bundle whose chain closes; what its files hold is no matter to those who check their seals."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("sealed") / "export"
    (made / "model.pth").write_bytes(bytes(range(256)))
    (made / "model_config.json").write_text("{}")
    policy = SCRC | {"scores": SCRC["scores"] | {"model_sha256": sha256_file(made / "model.pth")}}
    write_json_atomic(made / "scrc_params.json", policy)
    files = {path.name: path for path in made.iterdir()}
    described = {"class_names": ("none", "roadwork"), "data_fingerprint": "f" * 64}
    write_bundle(folder, files, policy=ScrcPolicy.model_validate(policy), **described)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def export(sealed, tmp_path):
    folder = shutil.copytree(sealed, tmp_path / "export")
    BundleValidator().validate(folder)
    return folder


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_a_byte(folder, data):
    """One byte of any file, bundle.json included; returns the name that the error must hold."""
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    return name


def take_a_file(folder, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    kind = data.draw(st.sampled_from(["gone", "link", "folder", "pipe"]))
    (folder / name).rename(folder.parent / "taken")
    if kind == "link":
        (folder / name).symlink_to(folder.parent / "taken")
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    return name


def rename_in_the_contents(folder, data):
    """A file by another path, the seal of bundle.json made anew."""
    sealed = sorted(json.loads((folder / "bundle.json").read_text())["files"])
    name, letters = data.draw(st.sampled_from(sealed)), st.text("abc/.\\\0-", max_size=8)
    path = data.draw(st.sampled_from([f"../{name}", f"/{name}", f"x/{name}", f"./{name}", "..", ""]) | letters)
    hypothesis.assume(path not in sealed)
    reseal(folder, lambda content: content["files"].update({path: content["files"].pop(name)}))
    return f"{re.escape(repr(path))}|names '{name}'"


MUTATIONS = [change_a_byte, take_a_file, rename_in_the_contents]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_is_refused_by_its_name(sealed, tmp_path, data):
    shutil.rmtree(tmp_path)
    folder = tmp_path / "export"
    shutil.copytree(sealed, folder, ignore=shutil.ignore_patterns("manifest.json"))
    name = data.draw(st.sampled_from(MUTATIONS))(folder, data)
    with pytest.raises(ArtifactError, match=name):
        read_bundle(folder)


def test_the_contents_cannot_be_written_in_another_way(export):
    path = export / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=r"bundle\.json' is not what was sealed"):
        BundleValidator().validate(export)


def test_a_change_of_policy_is_refused_until_it_is_sealed(export):
    edit(export / "bundle.json", lambda content: content["policy"]["scrc_params"].update(threshold=0.123))
    with pytest.raises(ArtifactError, match=r"bundle\.json' is not what was sealed"):
        BundleValidator().validate(export)
    reseal(export, lambda content: None)
    assert BundleValidator().validate(export).policy.scrc_params.threshold == 0.123


def test_what_is_not_named_has_no_place(export):
    (export / "code.py").write_text("print('hello')")
    with pytest.raises(ArtifactError, match=r"code\.py"):
        BundleValidator().validate(export)


@pytest.mark.parametrize("name", ["../model.pth", "/etc/passwd", "a/b.pth", "", ".", "..", "a\\b"])
def test_no_name_leaves_the_folder(export, name):
    def move(content):
        content["files"][name] = content["files"]["model.pth"]

    reseal(export, move)
    with pytest.raises(ArtifactError, match="only plain file names"):
        BundleValidator().validate(export)


def test_a_link_is_no_file(export, tmp_path):
    (export / "model.pth").rename(tmp_path / "model.pth")
    (export / "model.pth").symlink_to(tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match=r"'model\.pth', and there is no such file"):
        BundleValidator().validate(export)


def test_contents_that_are_a_link_are_not_read(export, tmp_path):
    (export / "bundle.json").rename(tmp_path / "bundle.json")
    (export / "bundle.json").symlink_to(tmp_path / "bundle.json")
    with pytest.raises(ArtifactError, match=r"bundle\.json' is no file of at most \d+ bytes"):
        BundleValidator().validate(export)


def test_contents_that_are_too_long_are_not_read(export, monkeypatch):
    monkeypatch.setattr("streetvision.io.validators.MAX_MANIFEST_BYTES", (export / "bundle.json").stat().st_size - 1)
    with pytest.raises(ArtifactError, match=r"bundle\.json' is no file of at most \d+ bytes"):
        BundleValidator().validate(export)


@pytest.mark.parametrize("content", [bytes(256), b"short"])
def test_a_file_that_is_not_the_sealed_one_is_named(export, content):
    (export / "model.pth").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"'model\.pth' in bundle .* is not the file that was sealed"):
        BundleValidator().validate(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(schema_version=1), "has schema_version 1, and this streetvision reads 2 and 3"),
        (lambda b: b.update(schema_version="2"), "schema_version"),
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
    reseal(export, change)
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
def test_a_policy_names_file_and_field(sealed, tmp_path, change, field):
    path = shutil.copy(sealed / "scrc_params.json", tmp_path / "scrc_params.json")
    PolicyValidator().validate(path)
    edit(path, change)
    with pytest.raises(ArtifactError, match=rf"scrc_params\.json.*({field})"):
        PolicyValidator().validate(path)

"""Any modification of a bundle is rejected, and the error names the file or field."""

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
from tests.conftest import edit_bundle_json
from tests.contracts.test_policies import SCRC


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with matching digests; its files have arbitrary content."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bundle") / "export"
    (source / "model.pth").write_bytes(bytes(range(256)))
    (source / "model_config.json").write_text("{}")
    policy = SCRC | {"scores": SCRC["scores"] | {"model_sha256": sha256_file(source / "model.pth")}}
    write_json_atomic(source / "scrc_params.json", policy)
    files = {path.name: path for path in source.iterdir()}
    metadata = {"class_names": ("none", "roadwork"), "data_fingerprint": "f" * 64}
    write_bundle(folder, files, policy=ScrcPolicy.model_validate(policy), **metadata)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def export(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "export")
    BundleValidator().validate(folder)
    return folder


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_a_byte(folder, data):
    """Change one byte of any file, bundle.json included; return the pattern that the error must match."""
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    return name


def remove_or_replace_a_file(folder, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    kind = data.draw(st.sampled_from(["gone", "dead link", "link to a pipe", "folder", "pipe"]))
    (folder / name).rename(folder.parent / "removed")
    if kind == "dead link":
        (folder / name).symlink_to(folder.parent / "nowhere")
    elif kind == "link to a pipe":
        os.mkfifo(folder.parent / "pipe")
        (folder / name).symlink_to(folder.parent / "pipe")
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    return name


def rename_in_bundle_json(folder, data):
    """List a file under another path, with a correct digest of bundle.json."""
    listed = sorted(json.loads((folder / "bundle.json").read_text())["files"])
    name, letters = data.draw(st.sampled_from(listed)), st.text("abc/.\\\0-", max_size=8)
    path = data.draw(st.sampled_from([f"../{name}", f"/{name}", f"x/{name}", f"./{name}", "..", ""]) | letters)
    hypothesis.assume(path not in listed)
    edit_bundle_json(folder, lambda content: content["files"].update({path: content["files"].pop(name)}))
    return f"{re.escape(repr(path))}|lists '{name}'|names '{name}'"


MUTATIONS = [change_a_byte, remove_or_replace_a_file, rename_in_bundle_json]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_is_rejected_with_its_name(bundle, tmp_path, data):
    shutil.rmtree(tmp_path)
    folder = tmp_path / "export"
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("manifest.json"))
    name = data.draw(st.sampled_from(MUTATIONS))(folder, data)
    with pytest.raises(ArtifactError, match=name):
        read_bundle(folder)


def test_bundle_json_in_another_format_is_rejected(export):
    path = export / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=r"bundle\.json' was modified"):
        BundleValidator().validate(export)


def test_a_changed_policy_is_rejected_unless_the_digest_is_updated(export):
    edit(export / "bundle.json", lambda content: content["policy"]["scrc_params"].update(threshold=0.123))
    with pytest.raises(ArtifactError, match=r"bundle\.json' was modified"):
        BundleValidator().validate(export)
    edit_bundle_json(export, lambda content: None)
    assert BundleValidator().validate(export).policy.scrc_params.threshold == 0.123


def test_an_unlisted_file_is_rejected(export):
    (export / "code.py").write_text("print('hello')")
    with pytest.raises(ArtifactError, match=r"code\.py"):
        BundleValidator().validate(export)


@pytest.mark.parametrize("name", ["../model.pth", "/etc/passwd", "a/b.pth", "", ".", "..", "a\\b"])
def test_only_plain_file_names_are_allowed(export, name):
    def move(content):
        content["files"][name] = content["files"]["model.pth"]

    edit_bundle_json(export, move)
    with pytest.raises(ArtifactError, match="only plain file names"):
        BundleValidator().validate(export)


def test_a_bundle_of_links_is_read_like_the_cache_of_the_hub(export, tmp_path):
    (tmp_path / "blobs").mkdir()
    for path in list(export.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    BundleValidator().validate(export)
    (tmp_path / "blobs" / "model.pth").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"'model\.pth' in bundle .* does not match its digest"):
        BundleValidator().validate(export)


@pytest.mark.parametrize(
    "name", [".DS_Store", "._bundle.json", ".git", ".gitattributes", "README.md", "Thumbs.db", "desktop.ini", "LICENSE"]
)
def test_files_that_systems_and_hubs_add_are_ignored(export, name):
    (export / name).write_text("x")
    BundleValidator().validate(export)


def test_the_hint_names_an_unexpected_file(export):
    (export / "run.py").write_text("x")
    with pytest.raises(ArtifactError) as caught:
        BundleValidator().validate(export)
    assert "run.py" in caught.value.hint


def test_a_run_folder_is_answered_with_its_bundle(export):
    with pytest.raises(ArtifactError, match="is a run folder") as caught:
        read_bundle(export.parent)
    assert str(export) in caught.value.hint


def test_a_too_large_bundle_json_is_rejected(export, monkeypatch):
    monkeypatch.setattr("streetvision.io.validators.MAX_MANIFEST_BYTES", (export / "bundle.json").stat().st_size - 1)
    with pytest.raises(ArtifactError, match=r"bundle\.json' is not a regular file of at most \d+ bytes"):
        BundleValidator().validate(export)


@pytest.mark.parametrize("content", [bytes(256), b"short"])
def test_a_modified_file_is_named(export, content):
    (export / "model.pth").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"'model\.pth' in bundle .* does not match its digest"):
        BundleValidator().validate(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=1), "has schema_version 1; this streetvision supports 2 and 3"),
        (lambda m: m.update(schema_version="2"), "schema_version"),
        (lambda m: m.pop("class_names"), "class_names"),
        (lambda m: m["policy"]["scrc_params"].update(threshold=1.5), "policy.*threshold"),
        (lambda m: m["policy"].update(policy_type="other"), "policy"),
        (lambda m: m["files"].pop("model.pth"), "model_checkpoint names 'model.pth'"),
        (lambda m: m["files"]["model.pth"].update(bytes=10**12), r"at most 64 files of \d+ bytes"),
        (
            lambda m: m.update(files={f"{i}": m["files"]["model.pth"] for i in range(65)} | m["files"]),
            "at most 64 files",
        ),
    ],
)
def test_an_invalid_field_is_named(export, change, message):
    edit_bundle_json(export, change)
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
def test_the_error_of_a_policy_names_file_and_field(bundle, tmp_path, change, field):
    path = shutil.copy(bundle / "scrc_params.json", tmp_path / "scrc_params.json")
    PolicyValidator().validate(path)
    edit(path, change)
    with pytest.raises(ArtifactError, match=rf"scrc_params\.json.*({field})"):
        PolicyValidator().validate(path)

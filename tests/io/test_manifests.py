import shutil
import subprocess

import pytest

import streetvision
from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import write_json_atomic
from streetvision.io.manifests import code_sha256, create_step_manifest, file_digest, git_sha, read_manifest

GIT = shutil.which("git")


@pytest.fixture
def manifest(tmp_path):
    for name in ("in.txt", "out.txt"):
        (tmp_path / "phase1").mkdir(exist_ok=True)
        (tmp_path / "phase1" / name).write_text(name)
    return create_step_manifest(
        "phase1",
        root=tmp_path,
        config={"Section": {"value": 1}},
        config_sha256="0" * 64,
        inputs={"phase1/in.txt": file_digest(tmp_path / "phase1" / "in.txt")},
        outputs=[tmp_path / "phase1" / "out.txt"],
        summary="done",
        metrics={"mcc": 0.5, "note": None},
        duration_seconds=1.23456,
    )


def test_files_have_relative_paths_digests_and_sizes(manifest, tmp_path):
    assert manifest.inputs == {"phase1/in.txt": file_digest(tmp_path / "phase1" / "in.txt")}
    assert manifest.outputs["phase1/out.txt"].bytes == 7
    assert str(tmp_path) not in manifest.model_dump_json()


def test_a_manifest_is_read_back_unchanged(manifest, tmp_path):
    write_json_atomic(tmp_path / "manifest.json", manifest.model_dump(mode="json"))
    assert read_manifest(tmp_path / "manifest.json") == manifest


def test_a_manifest_has_the_code_digest_the_commit_and_the_versions(manifest):
    assert manifest.code_sha256 == code_sha256()
    assert manifest.git_sha == git_sha()
    assert {"python", "torch", "streetvision"} <= set(manifest.versions)


def test_a_missing_output_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"gone\.txt"):
        create_step_manifest(
            "phase1",
            root=tmp_path,
            config={},
            config_sha256="0" * 64,
            inputs={},
            outputs=[tmp_path / "gone.txt"],
            summary="",
            metrics={},
        )


@pytest.mark.parametrize("content", [{}, [], {"phase": "phase1", "surprise": 1}])
def test_an_invalid_manifest_is_an_error_with_its_path(tmp_path, content):
    write_json_atomic(tmp_path / "manifest.json", content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(tmp_path / "manifest.json")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A package folder outside any git checkout."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(streetvision, "__file__", str(folder / "__init__.py"))
    git_sha.cache_clear()
    yield folder
    git_sha.cache_clear()


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_the_commit_of_a_checkout_has_a_plus_after_local_changes(code):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run([GIT, *arguments], cwd=code, check=True)
    head = subprocess.run([GIT, "rev-parse", "HEAD"], cwd=code, check=True, capture_output=True, text=True)
    commit = head.stdout.strip()
    (code / "notes.txt").write_text("an untracked file")
    assert git_sha() == commit
    git_sha.cache_clear()
    (code / "__init__.py").write_text("changed = True")
    assert git_sha() == f"{commit}+"


def test_without_a_checkout_or_without_git_there_is_no_commit(code, monkeypatch):
    assert git_sha() is None
    git_sha.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert git_sha() is None

import shutil
import subprocess

import pytest

import streetvision
from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import write_json_atomic
from streetvision.io.manifests import code_sha256, create_step_manifest, file_digest, git_sha, read_manifest

GIT = shutil.which("git")


@pytest.fixture
def made(tmp_path):
    for name in ("in.txt", "out.txt"):
        (tmp_path / "phase1").mkdir(exist_ok=True)
        (tmp_path / "phase1" / name).write_text(name)
    return create_step_manifest(
        "phase1",
        root=tmp_path,
        config={"Section": {"value": 1}},
        config_sha256="0" * 64,
        files=({"phase1/in.txt": file_digest(tmp_path / "phase1" / "in.txt")}, [tmp_path / "phase1" / "out.txt"]),
        outcome=("done", {"mcc": 0.5, "note": None}),
        duration_seconds=1.23456,
    )


def test_it_names_files_by_relative_path_with_digest_and_size(made, tmp_path):
    assert made.inputs == {"phase1/in.txt": file_digest(tmp_path / "phase1" / "in.txt")}
    assert made.outputs["phase1/out.txt"].bytes == 7
    assert str(tmp_path) not in made.model_dump_json()


def test_it_comes_back_as_it_was_written(made, tmp_path):
    write_json_atomic(tmp_path / "manifest.json", made.model_dump(mode="json"))
    assert read_manifest(tmp_path / "manifest.json") == made


def test_it_says_which_code_and_versions_made_it(made):
    assert made.code_sha256 == code_sha256()
    assert made.git_sha == git_sha()
    assert {"python", "torch", "streetvision"} <= set(made.versions)


def test_an_output_that_is_missing_is_an_error_and_not_left_out(tmp_path):
    with pytest.raises(ArtifactError, match=r"gone\.txt"):
        create_step_manifest(
            "phase1",
            root=tmp_path,
            config={},
            config_sha256="0" * 64,
            files=({}, [tmp_path / "gone.txt"]),
            outcome=("", {}),
        )


@pytest.mark.parametrize("content", [{}, [], {"phase": "phase1", "surprise": 1}])
def test_what_is_no_manifest_is_named(tmp_path, content):
    write_json_atomic(tmp_path / "manifest.json", content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(tmp_path / "manifest.json")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A folder that the code seems to run from, in no checkout."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(streetvision, "__file__", str(folder / "__init__.py"))
    git_sha.cache_clear()
    yield folder
    git_sha.cache_clear()


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_code_from_a_checkout_has_its_commit_and_a_sign_of_local_changes(code):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run([GIT, *words], cwd=code, check=True)
    head = subprocess.run([GIT, "rev-parse", "HEAD"], cwd=code, check=True, capture_output=True, text=True)
    commit = head.stdout.strip()
    (code / "notes.txt").write_text("git does not know this file")
    assert git_sha() == commit
    git_sha.cache_clear()
    (code / "__init__.py").write_text("changed = True")
    assert git_sha() == f"{commit}+"


def test_code_from_no_checkout_has_no_commit_with_git_or_without(code, monkeypatch):
    assert git_sha() is None
    git_sha.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert git_sha() is None

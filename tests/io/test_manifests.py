import pytest

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import write_json_atomic
from streetvision.io.manifests import code_sha256, create_step_manifest, git_sha, read_manifest, seal


@pytest.fixture
def made(tmp_path):
    for name in ("in.txt", "out.txt"):
        (tmp_path / "phase1").mkdir(exist_ok=True)
        (tmp_path / "phase1" / name).write_text(name)
    return create_step_manifest(
        "phase1",
        root=tmp_path,
        config={"Section": {"value": 1}},
        files=({"phase1/in.txt": seal(tmp_path / "phase1" / "in.txt")}, [tmp_path / "phase1" / "out.txt"]),
        outcome=("done", {"mcc": 0.5, "note": None}),
        duration_seconds=1.23456,
    )


def test_it_names_files_by_relative_path_with_digest_and_size(made, tmp_path):
    assert made.inputs == {"phase1/in.txt": seal(tmp_path / "phase1" / "in.txt")}
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
        create_step_manifest("phase1", root=tmp_path, config={}, files=({}, [tmp_path / "gone.txt"]), outcome=("", {}))


@pytest.mark.parametrize("content", [{}, [], {"phase": "phase1", "surprise": 1}])
def test_what_is_no_manifest_is_named(tmp_path, content):
    write_json_atomic(tmp_path / "manifest.json", content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(tmp_path / "manifest.json")

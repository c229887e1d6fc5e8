import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import (
    open_atomic,
    read_bytes,
    read_json,
    remove_stray_temps,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


def test_json_is_read_back_unchanged(tmp_path):
    value = {"b": [1, 2.5, None, "ü"], "a": {"nested": True}}
    write_json_atomic(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nonfinite_numbers_are_rejected_and_the_old_file_stays(tmp_path, number):
    path = tmp_path / "x.json"
    write_json_atomic(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, {"new": number})
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize(
    "text", ["{", "NaN", '{"a": Infinity}', "1e999", "[-1e999]", "[" * 100_000, '"\\ud800"', '{"\\uDFff": 1}']
)
def test_invalid_json_is_an_error_with_the_path(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_surrogate_pair_is_one_character(tmp_path):
    (tmp_path / "x.json").write_text('"\\ud83d\\udea7"')
    assert read_json(tmp_path / "x.json") == "\N{CONSTRUCTION SIGN}"


def test_an_unreadable_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*missing\.json': No such file"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(ArtifactError, match=r"cannot read .*Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", [".", "/", "..", "folder"])
def test_a_folder_is_not_written_over(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError):
        write_text_atomic(Path(name), "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), open_atomic(tmp_path / "x.bin") as handle:
        handle.write(b"half")
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_error_is_an_artifact_error_and_the_old_file_stays(tmp_path, monkeypatch, cause):
    path = tmp_path / "x.txt"
    write_text_atomic(path, "old")

    def fail(_):
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr("streetvision.io.atomic.os.fsync", fail)
    with pytest.raises(ArtifactError, match=os.strerror(cause)):
        write_text_atomic(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_file_in_place_of_the_folder_is_an_artifact_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_text_atomic(tmp_path / "file" / "x.txt", "content")


def test_concurrent_writers_do_not_interfere(tmp_path):
    path = tmp_path / "x.txt"
    texts = [str(i) * 10_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text_atomic(path, text), texts * 4))
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_stray_temporary_files_are_deleted_and_other_files_stay(tmp_path):
    (tmp_path / "phase1").mkdir()
    (tmp_path / "phase1" / ".model.pth.99999999-0123abcd.tmp").write_text("half")
    (tmp_path / "phase1" / f".in use.{os.getppid()}-0123abcd.tmp").write_text("of a running process")
    (tmp_path / "phase1" / ".my draft.tmp").write_text("of another program")
    (tmp_path / ".folder.99999999-0123abcd.tmp").mkdir()
    (tmp_path / ".lock").write_text("")
    remove_stray_temps(tmp_path)
    left = sorted(p.name for p in tmp_path.rglob("*"))
    in_use = f".in use.{os.getppid()}-0123abcd.tmp"
    assert left == sorted([".folder.99999999-0123abcd.tmp", in_use, ".lock", ".my draft.tmp", "phase1"])


def test_digests(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "x") == sha256_bytes(b"abc") == known
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})
    with pytest.raises(ArtifactError, match="cannot read"):
        sha256_file(tmp_path / "missing")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
@pytest.mark.parametrize("read", [read_bytes, read_json, sha256_file])
def test_only_regular_files_are_read(tmp_path, make, read):
    make(tmp_path / "x.json")
    with pytest.raises(ArtifactError):
        read(tmp_path / "x.json")


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as handle:
        handle.truncate(2**40)
    with pytest.raises(ArtifactError, match="limit"):
        read_json(tmp_path / "x.json")


def test_names_of_the_greatest_length_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        write_bytes_atomic(tmp_path / name, b"data")
        assert (tmp_path / name).read_bytes() == b"data"


def test_a_failure_to_read_another_file_is_no_failure_to_write(tmp_path):
    with pytest.raises(FileNotFoundError), open_atomic(tmp_path / "x") as handle:
        handle.write((tmp_path / "missing").read_bytes())
    with pytest.raises(ArtifactError, match="cannot write"), open_atomic(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []

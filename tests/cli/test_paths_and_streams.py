"""Paths with `~`, closed or narrow output streams, and an environment without a home directory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streetvision.contracts.errors import DataError
from streetvision.pipeline.config import compose_config


def run(*arguments, env=None, redirect=""):
    """Run the command line in a process of its own; `redirect` is appended to the command."""
    command = f'"{sys.executable}" -m streetvision ' + " ".join(arguments) + redirect
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["/bin/bash", "-c", command], env=environment | (env or {}), capture_output=True, text=True, timeout=120
    )


class TestHome:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "home"

    def test_settings_of_the_command_line_and_of_yaml(self, home):
        Path("settings.yaml").write_text("run_dir: ~/runs/a\ndata:\n  unlabeled: [~/more, other]\n")
        config = compose_config(
            ["data.root=~/photos", "model.explora_checkpoint_path=~/x.pth"], file=Path("settings.yaml")
        )
        assert config.run_dir == home / "runs" / "a"
        assert config.data.root == str(home / "photos")
        assert config.data.unlabeled == (home / "more", Path("other"))
        assert config.model.explora_checkpoint_path == home / "x.pth"

    def test_options_with_an_equals_sign(self, command, home, tmp_path):
        code, _, err = command("data", "scenes", "~/scenes", "scenes.count=20", "scenes.width=96", "scenes.height=72")
        assert code == 0, err
        assert (home / "scenes" / "index.csv").is_file()
        code, _, err = command("data", "check", "~/scenes", "--page=~/page.html")
        assert code == 0, err
        code, _, err = command("data", "import", "~/scenes", "--to=~/index")
        assert code == 0, err
        assert (home / "page.html").is_file() and (home / "index" / "index.parquet").is_file()
        assert not (tmp_path / "~").exists()

    def test_a_file_whose_name_begins_with_a_tilde(self, command):
        Path("~photos").mkdir()
        code, _, err = command("data", "check", "~photos")
        assert code == 2
        assert "has no images" in err


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (("data", "check", "hf://owner/name"), "streetvision.pipeline.data.check.check_data"),
        (("data", "import", "hf://owner/name", "--to", "x"), "streetvision.pipeline.data.import_data.import_data"),
        (("evaluate", "--bundle", "x", "--data", "hf://owner/name"), "streetvision.pipeline.run.launch_evaluation"),
    ],
)
def test_a_dataset_of_the_hub_keeps_its_name(command, monkeypatch, words, function):
    received = []

    def stop(*arguments, **options):
        received.extend([*arguments, *options.values()])
        raise DataError("enough")

    monkeypatch.setattr(function, stop)
    assert command(*words)[0] == 2
    assert "hf://owner/name" in received


@pytest.mark.parametrize(
    ("redirect", "sentence"),
    [(" >&-", "standard output is closed"), (" >/dev/full", "standard output cannot be written: No space left")],
)
def test_an_output_that_cannot_be_written_is_a_sentence(redirect, sentence):
    done = run("--help", redirect=redirect)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_error_does_not_end_the_command():
    done = run("predict", "--bundle", "/nowhere", "a.jpg", redirect=" 2>&-")
    assert (done.returncode, done.stderr) == (2, "")


@pytest.fixture
def long_name(scenes, tmp_path):
    """A folder of three photographs, one of them with a name of 240 characters; returns that name too."""
    folder, name = tmp_path / "photos", f"{'b' * 236}.jpg"
    folder.mkdir()
    photographs = sorted(scenes.rglob("*.jpg"))[:3]
    for photograph, copy in zip(photographs, ("a.jpg", name, "c.jpg"), strict=True):
        shutil.copy(photograph, folder / copy)
    return folder, name


@pytest.mark.parametrize("explain", [False, True])
def test_a_long_file_name_is_predicted_and_drawn_like_others(onnx_bundle, long_name, tmp_path, explain):
    folder, name = long_name
    options = ["--explain", str(tmp_path / "drawings")] if explain else []
    done = run("predict", "--bundle", str(onnx_bundle), str(folder), *options)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", name, "c.jpg"]
    assert all("probability" in row for row in rows)
    if explain:
        assert len(list((tmp_path / "drawings").iterdir())) == 3


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_a_reader_that_closes_the_pipe_ends_predict_without_a_traceback(onnx_bundle, scenes, reader):
    folders = " ".join([str(scenes)] * 20)  # more than a pipe holds
    script = f"predict --bundle {onnx_bundle} {folders}"
    done = run(script, redirect=f" | {reader}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 2
    assert "Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == (1 if reader == "head -1" else 0)


def test_a_locale_without_utf8_is_named_and_nothing_is_left_out_silently(tmp_path):
    for name in ("None/Straße.jpg", "None/b.jpg", "Roadwork/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/nonexistent"}
    done = run("data", "import", str(tmp_path), "--to", str(tmp_path / "index"), env=env)
    assert done.returncode == 0, done.stderr
    assert "PYTHONUTF8=1" in done.stderr
    assert "Stra" in done.stderr and "is not UTF-8" in done.stderr

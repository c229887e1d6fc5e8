"""Every command of the tutorial, in order, on small drawn scenes and with a small model."""

import csv
import json
import shutil

import pytest

from tests.conftest import TINY_MODEL
from tests.test_docs import ROOT, commands

FASTER = {
    "train": [*TINY_MODEL, "model.backbone.seed=0"],
    "cross-validate": [
        *TINY_MODEL,
        "cross_validation.folds=3",
        "cross_validation.repeats=1",
        "cross_validation.learning_curve=[]",
        "cross_validation.n_resamples=100",
    ],
    "dev": [*TINY_MODEL, "phase5.method=none"],
}
"""Verb -> settings that make it fast, with a tiny model in place of one from the Hugging Face Hub."""


@pytest.fixture
def photos(scenes, tmp_path, monkeypatch):
    """The folders of step 1, and the images of step 5, in the current directory."""
    monkeypatch.chdir(tmp_path)
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    for row in rows:
        class_name = "Roadwork" if row["label"] in {"1", "Roadwork"} else "None"
        folder = tmp_path / "photos" / class_name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes / row["path"], folder)
    (tmp_path / "more").mkdir()
    for name in ("street.jpg", "more/one.jpg", "more/two.jpg"):
        shutil.copy(scenes / rows[0]["path"], tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_tutorial_succeeds(photos, command):
    output_of, failed = {}, []
    for words in commands(ROOT / "docs" / "get-started" / "tutorial.md"):
        verb = words[0]
        if verb == "serve":
            continue  # it runs until it is interrupted; tests/serving covers it
        words += FASTER.get(verb, [])
        if verb == "dev":
            words = [{"5": "1"}.get(word, word) for word in words] + ["--jobs", "2"]
        code, out, err = command(*words)
        failed += [(words, code, err)] if code else []
        output_of[verb] = out
    assert failed == []
    assert (photos / "check.html").read_text().startswith("<!doctype html>")
    assert (photos / "outputs" / "photos_peft" / "export" / "bundle.json").is_file()
    assert (photos / "outputs" / "photos" / "evaluation" / "report.html").is_file()
    predictions = [json.loads(line) for line in output_of["predict"].splitlines()]
    assert [prediction["image"] for prediction in predictions] == ["street.jpg", "more/one.jpg", "more/two.jpg"]
    assert "loss, focal" in output_of["dev"]

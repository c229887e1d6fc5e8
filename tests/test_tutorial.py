"""The tutorial, command by command, as somebody follows it: on small drawings in place of photos, and a small model."""

import csv
import json
import shutil

import pytest

from tests.conftest import TINY_MODEL
from tests.test_docs import ROOT, commands

WEIGHTS_OF_ITS_OWN = "model=dinov3_vits16"
SMALLER = {"train": [*TINY_MODEL, "model.backbone.seed=0"], "dev": [*TINY_MODEL, "phase5.method=none"]}
"""Verb -> what makes it quick; the model also takes the place of one whose weights lie on the hub."""


@pytest.fixture
def photos(scenes, tmp_path, monkeypatch):
    """The folders of step 1, and the images of step 5, in the current directory."""
    monkeypatch.chdir(tmp_path)
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    for row in rows:
        kind = "Roadwork" if row["label"] in {"1", "Roadwork"} else "None"
        folder = tmp_path / "photos" / kind
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes / row["path"], folder)
    (tmp_path / "more").mkdir()
    for place in ("street.jpg", "more/one.jpg", "more/two.jpg"):
        shutil.copy(scenes / rows[0]["path"], tmp_path / place)
    return tmp_path


def test_every_step_of_it_does_what_it_says(photos, command):
    said, failed = {}, []
    for words in commands(ROOT / "docs" / "get-started" / "tutorial.md"):
        verb = words[0]
        if verb == "serve":
            continue  # it would not end; tests/serving starts it
        words = [word for word in words if word != WEIGHTS_OF_ITS_OWN] + SMALLER.get(verb, [])
        if verb == "dev":
            words = [{"5": "1"}.get(word, word) for word in words] + ["--jobs", "2"]
        code, out, err = command(*words)
        failed += [(words, code, err)] if code else []
        said[verb] = out
    assert failed == []
    assert (photos / "check.html").read_text().startswith("<!doctype html>")
    assert (photos / "outputs" / "photos_peft" / "export" / "bundle.json").is_file()
    assert (photos / "outputs" / "photos" / "evaluation" / "report.html").is_file()
    answers = [json.loads(line) for line in said["predict"].splitlines()]
    assert [answer["image"] for answer in answers] == ["street.jpg", "more/one.jpg", "more/two.jpg"]
    assert "loss, focal" in said["dev"]

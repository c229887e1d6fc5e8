"""What the documentation shows: commands that the command line takes, code that runs, a site that builds."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.cli import build_app
from streetvision.models.backbone import BACKBONES
from streetvision.pipeline.compose import compose_config
from streetvision.pipeline.search import read_search
from streetvision.research.ablation import read_table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|-m |bin/)streetvision (?P<rest>.*)")
COMPOSED = {"train", "demo", "evaluate", "reward", "scenes"}
"""Verbs whose KEY=VALUE are settings of a run."""
FILLED_IN = {"seed=N": "seed=0", "model.backbone.name=FOLDER": "model.backbone.name=here"}


def commands(page):
    """The command lines in a page's blocks of code, continued lines joined, without what only stands for something."""
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        found = COMMAND.search(line.strip()) if line.startswith("    ") else None
        if found:
            rest = re.sub(r"\[(--[^\]]*)\]", r"\1", found["rest"].rstrip("'"))
            for name, value in FILLED_IN.items():
                rest = rest.replace(name, value)
            yield [part for part in shlex.split(rest, comments=True) if part != "..."]


ALL = [pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands(page)]


def test_the_pages_show_commands():
    assert len(ALL) > 25
    assert {words[0] for (words,) in (case.values for case in ALL)} >= {
        "train",
        "evaluate",
        "predict",
        "serve",
        "ablate",
    }


@pytest.mark.parametrize("words", ALL)
def test_every_command_is_one_that_the_command_line_takes(words):
    command = typer.main.get_command(build_app())
    context = command.make_context("streetvision", [words[0]])
    verb, rest = words[0], words[1:]
    while hasattr(command, "commands"):
        command = command.commands[verb]
        if hasattr(command, "commands"):
            verb, rest = rest[0], rest[1:]
    parsed = command.make_context(verb, rest, parent=context).params
    overrides = parsed.get("overrides") or []
    if verb in COMPOSED:
        compose_config(overrides)
    if verb == "ablate" and parsed["table"] != "mine.yaml":
        read_table(parsed["table"]).only(tuple(parsed["pair"] or ()))
        compose_config(overrides)
    if verb == "train" and parsed["search"]:
        assert read_search(ROOT / parsed["search"])
    if verb == "ablate" and parsed["page"]:
        assert f"<!-- ablate {parsed['table']} -->" in (ROOT / parsed["page"]).read_text()


BLOCKS = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_every_example_of_an_extension_runs(title, code):
    tables = (CALIBRATORS, BACKBONES)
    before = [dict(table) for table in tables]
    try:
        exec(compile(code, f"extending.md, {title}", "exec"), {"__name__": "example"})  # noqa: S102 (our own page)
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def test_there_are_four_of_them():
    assert [title for title, _ in BLOCKS] == ["A calibrator", "A fusion of views", "A backbone", "A phase"]


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed (extra: docs): the site is not built")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Extending" in (tmp_path / "site" / "extending.html").read_text()

"""What the documentation shows: commands that the command line takes, code that runs, a site that builds."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scripts.reference_pages import PAGES as PAGES_OF_REFERENCE
from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.cli.app import build_app
from streetvision.contracts.split_contracts import MAY_OPEN
from streetvision.experiments.ablation_table import read_table
from streetvision.experiments.search import read_search
from streetvision.models.backbone import BACKBONES
from streetvision.pipeline.config import compose_config
from tests.lexicon import PLACES, files, hits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "spec" / "compliance.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:^|-m |bin/)streetvision (?P<rest>.*)")
IN_TABLE = re.compile(r"\| `streetvision (?P<rest>[^`]*)` \|$")
COMPOSED = {"train", "demo", "evaluate", "reward", "scenes"}
"""Verbs whose KEY=VALUE are settings of a run."""
FILLED_IN = {"seed=N": "seed=0", "model.backbone.name=FOLDER": "model.backbone.name=here"}


def commands(page):
    """The command lines in a page's blocks of code, continued lines joined, without what only stands for something.

    In spec/compliance.md they are in the last column of the tables.
    """
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        in_block = COMMAND.search(line.strip()) if line.startswith("    ") else None
        found = IN_TABLE.search(line) if page.stem == "compliance" else in_block
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
        "dev",
    }


@pytest.mark.parametrize("words", ALL)
def test_every_command_is_one_that_the_command_line_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
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
        table = read_table(parsed["table"]).only(tuple(parsed["pair"] or ()))
        compose_config([*table.common, *overrides])
    if verb == "train" and parsed["search"]:
        assert read_search(ROOT / parsed["search"])
    if verb in ("ablate", "bench") and parsed["page"]:
        assert f"<!-- {verb} {parsed.get('table') or parsed['section']} -->" in (ROOT / parsed["page"]).read_text()


def test_the_picture_shows_what_a_phase_may_open():
    picture = (ROOT / "docs" / "concepts" / "architecture.svg").read_text()
    shown = sorted(tuple(title.split()) for title in re.findall("<title>(.*?)</title>", picture))
    assert shown == sorted((phase, split.value) for phase, splits in MAY_OPEN.items() for split in splits)


BLOCKS = re.findall(
    r"^## (.*?)\n.*?```python\n(.*?)```", (ROOT / "docs" / "how-to" / "extend.md").read_text(), re.M | re.S
)


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_every_example_of_an_extension_runs(title, code):
    tables = (CALIBRATORS, BACKBONES)
    before = [dict(table) for table in tables]
    try:
        exec(compile(code, f"extend.md, {title}", "exec"), {"__name__": "example"})  # noqa: S102 (our own page)
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def test_there_are_four_of_them():
    assert [title for title, _ in BLOCKS] == ["A calibrator", "A fusion of views", "A backbone", "A phase"]


COMPLIANCE = (ROOT / "spec" / "compliance.md").read_text()


def compliance_rows():
    """The cells of each row of spec/compliance.md: requirement, code, test, what shows it."""
    tables = re.findall(r"^\| requirement .*\n\|[-|]+\n((?:\|.*\n)+)", COMPLIANCE, re.M)
    return [line.strip("| ").split(" | ") for table in tables for line in table.splitlines()]


def missing(requirement, code, tests, shown):
    """What a row names and does not exist."""
    for name in re.findall(r"`(.*?)`", code):
        if not any((folder / name).is_file() for folder in (ROOT / "src" / "streetvision", ROOT)):
            yield requirement, name
    for name in re.findall(r"`(.*?)`", tests):
        file, *parts = name.split("::")
        text = (ROOT / "tests" / file).read_text() if (ROOT / "tests" / file).is_file() else ""
        if not all(re.search(rf"^ *(?:class|(?:async )?def) {part}\b", text, re.M) for part in parts) or not text:
            yield requirement, name
    for target in re.findall(r"`make (\w+)`", shown):
        if f"\n{target}:" not in (ROOT / "Makefile").read_text():
            yield requirement, f"make {target}"
    for script in re.findall(r"`python (\S+\.py)`", shown):
        if not (ROOT / script).is_file():
            yield requirement, script


def test_every_row_of_the_compliance_table_names_existing_files():
    rows = compliance_rows()
    assert len(rows) > 200
    assert len(rows) == COMPLIANCE.count("\n|") - 2 * COMPLIANCE.count("\n| requirement") - 6  # the table of four words
    assert [name for row in rows for name in missing(*row)] == []


def test_a_row_that_names_a_missing_file_is_found():
    row = ("x", "`cli/app.py`, `gone.py`", "`test_docs.py::test_gone`", "`make gone`, `python scripts/gone.py`")
    assert [name for _, name in missing(*row)] == ["gone.py", "test_docs.py::test_gone", "make gone", "scripts/gone.py"]


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed (extra: docs): the site is not built")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Extend" in (tmp_path / "site" / "how-to" / "extend.html").read_text()


@pytest.mark.parametrize("name", PAGES_OF_REFERENCE)
def test_the_generated_reference_pages_are_current(name):
    assert (ROOT / "docs" / "reference" / name).read_text() == PAGES_OF_REFERENCE[name]()


def test_no_word_of_the_lexicon_is_used():
    found = [
        f"{path.relative_to(ROOT)}:{hit[0]}: {hit[1]}"
        for path in files(list(map(ROOT.joinpath, PLACES)))
        for hit in hits(path)
    ]
    assert found == []

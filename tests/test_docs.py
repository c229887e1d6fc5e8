"""The documentation: its commands are valid, its code runs, and its generated pages are current."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from scripts.reference_pages import PAGES as REFERENCE_PAGES
from streetvision.calibration.calibrators import CALIBRATORS
from streetvision.cli.app import build_app
from streetvision.contracts.split_contracts import MAY_OPEN
from streetvision.experiments.search import read_search
from streetvision.experiments.systems_table import SystemsTable
from streetvision.experiments.tables import read_table
from streetvision.models.backbone import BACKBONES
from streetvision.pipeline.config import compose_config
from tests.lexicon import PLACES, files, hits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:^|-m |bin/)streetvision (?P<rest>.*)")
WITH_SETTINGS = {"train", "demo", "evaluate", "reward", "scenes"}
"""Verbs whose KEY=VALUE are settings of a run."""
PLACEHOLDERS = {"seed=N": "seed=0", "model.backbone.name=FOLDER": "model.backbone.name=folder"}
"""Placeholder in a command -> a valid value."""


def commands(page):
    """The commands in the code blocks of a page, as lists of words, with values in place of the placeholders."""
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        match = COMMAND.search(line.strip()) if line.startswith("    ") else None
        if match:
            rest = re.sub(r"\[(--[^\]]*)\]", r"\1", match["rest"])
            if rest.count("'") % 2:  # the end of bash -c '...'
                rest = rest.rstrip("'")
            for name, value in PLACEHOLDERS.items():
                rest = rest.replace(name, value)
            yield [part for part in shlex.split(rest, comments=True) if part != "..."]


COMMANDS = [pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands(page)]


def test_the_pages_show_commands():
    assert len(COMMANDS) > 25
    assert {words[0] for (words,) in (case.values for case in COMMANDS)} >= {
        "train",
        "evaluate",
        "predict",
        "serve",
        "dev",
    }


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_valid(words, monkeypatch):
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
    if verb in WITH_SETTINGS:
        compose_config(overrides)
    if verb == "ablate" and parsed["table"] != "mine.yaml":
        table = read_table(parsed["table"])
        if isinstance(table, SystemsTable):
            table = table.only(tuple(parsed["system"] or ()), tuple(parsed["data"] or ()))
        else:
            table = table.only(tuple(parsed["pair"] or ()))
        compose_config([*table.common, *overrides])
    if verb == "train" and parsed["search"]:
        assert read_search(ROOT / parsed["search"])
    if verb in ("ablate", "bench") and parsed["page"]:
        assert f"<!-- {verb} {parsed.get('table') or parsed['section']} -->" in (ROOT / parsed["page"]).read_text()


def test_the_architecture_picture_shows_which_splits_a_phase_may_open():
    svg = (ROOT / "docs" / "concepts" / "architecture.svg").read_text()
    shown = sorted(tuple(title.split()) for title in re.findall("<title>(.*?)</title>", svg))
    assert shown == sorted((phase, split.value) for phase, splits in MAY_OPEN.items() for split in splits)


EXAMPLES = re.findall(
    r"^## (.*?)\n.*?```python\n(.*?)```", (ROOT / "docs" / "how-to" / "extend.md").read_text(), re.M | re.S
)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_every_extension_example_runs(title, code):
    tables = (CALIBRATORS, BACKBONES)
    before = [dict(table) for table in tables]
    try:
        exec(compile(code, f"extend.md, {title}", "exec"), {"__name__": "example"})  # noqa: S102 (our own page)
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


def test_the_extension_guide_has_four_examples():
    assert [title for title, _ in EXAMPLES] == ["A calibrator", "A fusion of views", "A backbone", "A phase"]


COMPLIANCE = (ROOT / "spec" / "compliance.md").read_text()


def compliance_rows():
    """The cells of each row of spec/compliance.md: task, what, where, shown by, what differs."""
    return [line.strip().split(" | ") for line in COMPLIANCE.splitlines() if re.match(r"\| \d+ \|", line)]


def missing(where, shown_by):
    """Every file and test of a row that does not exist."""
    for name in re.findall(r"`(.*?)`", where):
        if not any((folder / name).is_file() for folder in (ROOT / "src" / "streetvision", ROOT)):
            yield name
    for name in re.findall(r"`(.*?::.*?)`", shown_by):
        file, *parts = name.split("::")
        path = ROOT / "tests" / file
        text = path.read_text() if path.is_file() else ""
        if not text or not all(re.search(rf"^ *(?:class|(?:async )?def) {part}\b", text, re.M) for part in parts):
            yield name


def test_every_task_of_the_specification_has_a_row():
    rows = compliance_rows()
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 204))
    assert [name for row in rows for name in missing(row[2], row[3])] == []
    assert all(row[3].strip() for row in rows)


def test_a_row_that_names_a_missing_file_is_found():
    assert list(missing("`cli/app.py`, `gone.py`", "`test_docs.py::test_gone`")) == [
        "gone.py",
        "test_docs.py::test_gone",
    ]


@pytest.mark.parametrize("name", REFERENCE_PAGES)
def test_the_generated_reference_pages_are_current(name):
    assert (ROOT / "docs" / "reference" / name).read_text() == REFERENCE_PAGES[name]()


def test_no_banned_word_is_used():
    banned = [
        f"{path.relative_to(ROOT)}:{hit[0]}: {hit[1]}"
        for path in files(list(map(ROOT.joinpath, PLACES)))
        for hit in hits(path)
    ]
    assert banned == []

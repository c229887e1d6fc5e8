"""Measured figures in the docs name the commit they were measured with, and what decides them is unchanged since.

A table of figures is between `<!-- MARK -->` and `<!-- end -->`. `streetvision dev bench` and `dev ablate` write
it with `--page`; a table of another command has the mark `measured NAME` and the same last line, "Commit ...".
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference")]
)
BLOCK = re.compile(r"<!-- ((?:bench|ablate|measured) [\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"\d\.\d\d|\d (?:ms|s|MB|GB|%|images/s)\b")
COMMIT = re.compile(r"^Commit ([0-9a-f]{9})\.$", re.MULTILINE)

PACKAGE = "src/streetvision"
TRAINED = [
    f"{PACKAGE}/{name}"
    for name in (
        "calibration",
        "data/augmentation.py",
        "data/splitting",
        "eval/gate.py",
        "eval/stability.py",
        "eval/thresholds.py",
        "models",
        "pipeline/steps",
        "training",
    )
]
"""What an MCC depends on."""
DECISIVE: dict[str, list[str]] = {}
"""Mark -> files and folders that the figures depend on."""


def blocks():
    """Page, mark and text of each measured table."""
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            yield pytest.param(block[1], block[2], id=f"{page.stem} {block[1]}")


def git(*arguments):
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)  # noqa: S607


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_of_figures_is_in_a_marked_block(page):
    outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert [line for line in outside.splitlines() if line.startswith("|") and FIGURE.search(line)] == []


@pytest.mark.parametrize(("mark", "text"), blocks())
def test_what_decides_a_figure_is_unchanged_since_its_commit(mark, text):
    if not FIGURE.search(text):
        return  # not measured
    assert mark in DECISIVE, f"name the files that decide {mark!r} in DECISIVE"
    named = COMMIT.findall(text)
    assert named, f"{mark} names no commit, or one with modified files: measure it with committed code"
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the history of a git checkout")
    for path in DECISIVE[mark]:
        assert (ROOT / path).exists(), path
    for commit in named:
        assert git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0, (
            f"{commit} is not a commit of this history"
        )
        changed = git("diff", "--name-only", commit, "--", *DECISIVE[mark]).stdout.split()
        assert changed == [], f"measure {mark} again, or leave it out: {commit} is older than {changed}"

"""Measured figures in the docs name the commit they were measured with, and what decides them is unchanged since.

A table of figures is between `<!-- MARK -->` and `<!-- end -->`. `streetvision dev bench` and `dev ablate` write
it with `--page`; a table of another command has the mark `measured NAME` and the same last line, "Commit ...".
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference")]
)
BLOCK = re.compile(r"<!-- ((?:bench|ablate|measured) [\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"(?<![\d.])0?\.\d{2,4}(?![\d.])|\d (?:ms|s|MB|GB|images/s)\b")
TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)
COMMIT = re.compile(r"^Commit ([0-9a-f]{9})\.$", re.MULTILINE)

CLASSIFIER = (
    "calibration",
    "data/augmentation.py",
    "data/splitting",
    "eval/gate.py",
    "eval/stability.py",
    "eval/thresholds.py",
    "models",
    "pipeline/gates.py",
    "pipeline/steps",
    "training",
)
"""Files of the package that an MCC depends on."""
DECODING = ("data/decode.py", "data/image_file.py", "data/image_header.py", "io/resize.py", "io/resize_tensor.py")
PREDICTION = (*DECODING, "bundle/predictor.py", "models/module.py", "models/network.py")
FUSION = (
    "eval/gate.py",
    "eval/stability.py",
    "models/evidence.py",
    "models/fusion.py",
    "models/views.py",
    "training/evidence.py",
    "training/fusion.py",
    "training/probe.py",
)
DECISIVE = {
    "ablate backbone": CLASSIFIER,
    "ablate results": CLASSIFIER,
    "ablate specification": CLASSIFIER,
    "ablate stages": CLASSIFIER,
    "bench calibration": ("calibration",),
    "bench data": (
        "data/augmentation.py",
        "data/cache.py",
        "data/datamodule.py",
        "data/transforms",
        "data/two_views.py",
    ),
    "bench growth": (*PREDICTION, "eval/resampling.py", "eval/thresholds.py"),
    "bench inference": (*PREDICTION, "bundle/runtimes"),
    "bench photos": (*PREDICTION, "bundle/batch"),
    "bench pipeline": ("data/scan.py", *CLASSIFIER),
    "bench reward": ("subnet/reward.py",),
    "bench startup": ("cli/app.py", "bundle/predictor.py", "serving/server.py"),
    "bench statistics": (
        "eval/bootstrap.py",
        "eval/counts.py",
        "eval/metrics.py",
        "eval/resampling.py",
        "eval/thresholds.py",
    ),
    "bench training": ("models/module.py", "training"),
    "bench views": ("models/multi_view.py", "models/views.py"),
    "measured false-alarms": ("monitoring/martingale.py", "monitoring/risk.py"),
    "measured fusion": FUSION,
    "measured label-errors": ("labeling/queue.py", "labeling/strategies.py", "training/probe.py"),
    "measured labeling": ("labeling/queue.py", "labeling/strategies.py", "training/probe.py"),
    "measured monitoring": (
        "bundle/reference.py",
        "data/quality.py",
        "monitoring/history.py",
        "monitoring/martingale.py",
        "monitoring/monitor.py",
        "monitoring/state.py",
    ),
    "measured near-duplicates": ("data/grouping", "data/scan.py"),
    "measured reduced-decoding": DECODING,
    "measured risk": ("calibration/risk_control.py",),
    "measured selection": ("calibration",),
    "measured simulated-thresholds": ("eval/stability.py", "eval/thresholds.py"),
    "measured thresholds": ("eval/stability.py", "eval/thresholds.py"),
}
"""Mark -> files and folders of the package that the figures depend on."""


def blocks():
    """Page, mark and text of each measured table."""
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            yield pytest.param(block[1], block[2], id=f"{page.stem} {block[1]}")


def git(*arguments):
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)  # noqa: S607


def differs(commit, path):
    """Whether a file differs from the one of a commit in more than docstrings and comments."""
    file, before = ROOT / path, git("show", f"{commit}:{path}")
    if file.suffix != ".py" or not file.exists() or before.returncode:
        return True
    return statements(before.stdout) != statements(file.read_text(encoding="utf-8"))


def statements(code):
    """The syntax tree of Python code as text, without texts that stand alone."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [part for part in node.body if not is_text(part)]
    return ast.dump(tree)


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_a_docstring_or_a_comment_decides_no_figure():
    code = 'class A:\n    """One."""\n\n    b: int = 1\n    """Two."""\n'
    assert statements(code) == statements(code.replace("One", "1").replace("Two.", "2.") + "# more\n")
    assert statements(code) != statements(code.replace("= 1", "= 2"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_of_figures_is_in_a_marked_block(page):
    outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for table in TABLE.findall(outside):
        measured = [row for row in table.splitlines() if FIGURE.search(row)]
        assert len(measured) <= 1, f"put <!-- measured NAME --> and <!-- end --> around the table of {measured[0]}"


@pytest.mark.parametrize(("mark", "text"), list(blocks()))
def test_what_decides_a_figure_is_unchanged_since_its_commit(mark, text):
    if not FIGURE.search(text):
        return  # not measured
    assert mark in DECISIVE, f"name the files that decide {mark!r} in DECISIVE"
    named = COMMIT.findall(text)
    assert named, f"{mark} names no commit, or one with modified files: measure it with committed code"
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the history of a git checkout")
    paths = [f"src/streetvision/{name}" for name in DECISIVE[mark]]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for commit in named:
        assert git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0, (
            f"{commit} is not a commit of this history"
        )
        changed = [
            path for path in git("diff", "--name-only", commit, "--", *paths).stdout.split() if differs(commit, path)
        ]
        assert changed == [], f"measure {mark} again, or leave it out: {commit} is older than {changed}"

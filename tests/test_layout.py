"""What the house holds itself to: files that fit into a head, and nothing written twice."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
LONGEST = 350
WINDOW = 6


@pytest.mark.parametrize("folder", ["src", "tests", "scripts"])
def test_no_file_is_longer_than_a_reader_holds(folder):
    found = {path: len(path.read_text().splitlines()) for path in FILES if path.is_relative_to(ROOT / folder)}
    assert found
    assert {str(path): count for path, count in found.items() if count > LONGEST} == {}


def lines_of(path):
    """(number, text) of the lines that say something: no imports, no blank ones."""
    text = path.read_text()
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return [(number, line) for number, line in lines if line and number not in imports]


def repeated(files):
    """Windows of six lines that stand in two places."""
    places = defaultdict(list)
    for path in files:
        lines = lines_of(path)
        for start in range(len(lines) - WINDOW + 1):
            window = lines[start : start + WINDOW]
            places[tuple(line for _, line in window)].append(f"{path}:{window[0][0]}")
    return [where for where in places.values() if len(where) > 1]


def test_no_six_lines_stand_twice_in_the_package():
    assert repeated(path for path in FILES if path.is_relative_to(ROOT / "src")) == []


def test_a_repetition_is_found(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("import os\n\n" + "\n".join(f"{letter} = 1" for letter in "abcdef") + "\n")
    assert repeated(sorted(tmp_path.glob("*.py"))) == [[f"{tmp_path / 'a.py'}:3", f"{tmp_path / 'b.py'}:3"]]

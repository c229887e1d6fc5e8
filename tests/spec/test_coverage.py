"""Every task of the specification is run by a test, or is named with the reason why it cannot be."""

import ast
from pathlib import Path

from tests.spec import test_command_lines, test_python_lines
from tests.spec.lines import NOT_RUN

TESTS = Path(__file__).parents[1]
TASKS = range(1, 204)


def tasks_of(path):
    """The tasks in the `spec` marks of a file."""
    names = vars(test_python_lines) | vars(test_command_lines)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("spec", "pytest.mark.spec"):
            continue
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                yield from names[ast.unparse(argument.value)]
            elif isinstance(argument, ast.Constant):
                yield argument.value


def test_every_task_is_run_or_named():
    run = {task for path in TESTS.rglob("test_*.py") if "spec(" in path.read_text() for task in tasks_of(path)}
    assert run <= set(TASKS)
    assert not run & NOT_RUN.keys()
    assert set(TASKS) - run == set(NOT_RUN)
    assert len(run) >= 170

"""The lines of the specification: what is changed before they run, and which tasks have none."""

import contextlib
import io
import shlex
from importlib import resources
from pathlib import Path

CONFIGS = Path(str(resources.files("streetvision"))) / "configs"
PREFIXES = {"from contracts.": "from streetvision.contracts.", "from models.": "from streetvision.models."}
PREFIXES |= {"from data.": "from streetvision.data.", "'configs/": f"'{CONFIGS.as_posix()}/"}

NOT_RUN = {
    **dict.fromkeys((1, 2, 71, 105, 140, 160, 175, 195), "a git command of whoever follows the tasks"),
    3: "makes empty folders; the code is in models/, training/ and data/",
    7: "needs a GPU",
    68: "a speed on a GPU; docs/results/benchmarks.md has the measurement",
    91: "needs two GPUs; task 81 is tested on two CPU processes",
    96: "an expected gain; docs/results/ablations.md has the measurement",
    129: "an expected gain; docs/results/ablations.md has the measurement",
    97: "a comment about a later feature; the negatives of a group are left out instead",
}
"""Task -> why no test runs its line."""


def run_python(line: str) -> str:
    """Run `python -c "..."` as the specification has it, with the package prefix; return what it prints."""
    program, option, code = shlex.split(line)
    assert (program, option) == ("python", "-c")
    for before, after in PREFIXES.items():
        code = code.replace(before, after)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<specification>", "exec"), {"Path": Path})  # noqa: S102
    return printed.getvalue().strip()

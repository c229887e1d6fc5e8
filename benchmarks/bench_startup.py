"""`streetvision dev bench startup`: the help text and an error, compared with starting Python and importing torch."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.progress import Progress

USER_ERROR = 2
"""What the command ends with when it is the user's mistake."""


def bench_startup(_: Progress) -> list[Figure]:
    """Seconds until the command has ended."""

    def python(*arguments: str, code: int = 0) -> Callable[[], object]:
        return partial(_run, arguments, code)

    ours, floor = interleaved_median(python("-m", "streetvision", "--help"), python("-c", "pass"))
    mistake, torch = interleaved_median(
        python("-m", "streetvision", "train", "training.mode=froze", code=USER_ERROR), python("-c", "import torch")
    )
    return [
        Figure("streetvision --help", ours, "python -c pass", floor),
        Figure("a setting that does not exist, refused", mistake, "python -c 'import torch'", torch),
    ]


def _run(arguments: Sequence[str], code: int) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True)  # noqa: S603
    assert done.returncode == code, done.stderr

"""`streetvision bench startup`: the help text, against an interpreter that starts and ends."""

import subprocess
import sys
from collections.abc import Callable

from streetvision.contracts.progress import Progress
from streetvision.research.figures import Figure, in_turn


def bench_startup(_: Progress) -> list[Figure]:
    """Seconds until the command has ended."""

    def python(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603

    ours, floor = in_turn(python("-m", "streetvision", "--help"), python("-c", "pass"))
    return [Figure("streetvision --help", ours, "python -c pass", floor)]

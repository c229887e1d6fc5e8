"""One of the disturbed runs; `make chaos` makes a hundred. A process of its own forks them: this one has threads."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_runs_that_were_killed_end_in_the_bundle_of_an_undisturbed_one():
    command = [sys.executable, "-m", "tests.robustness.chaos", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 same bundles, 0 not" in done.stdout

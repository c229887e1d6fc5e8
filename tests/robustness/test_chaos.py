"""One interrupted run; `make chaos` makes a hundred. A new process forks them, because this one has threads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
def test_a_killed_and_resumed_run_gives_the_same_bundle():
    command = [sys.executable, "-m", "tests.robustness.chaos", "--runs", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 equal bundles, 0 different" in result.stdout

"""One interrupted run; `make chaos` makes a hundred."""

import multiprocessing
import os

import pytest

from streetvision.io.process_pool import worker_context, write_output_to
from streetvision.pipeline.phases import PRELOADED
from tests.robustness import chaos


def run_once(log):
    write_output_to(log)
    multiprocessing.set_start_method("fork", force=True)  # of the loaders: a fork server would start for each run
    os._exit(chaos.main(["--runs", "1", "--seed", "3"]))  # killed once, with all its processes


@pytest.mark.long
def test_a_killed_and_resumed_run_gives_the_same_bundle(tmp_path):
    """In a new process, which may fork: this one has threads."""
    process = worker_context(PRELOADED).Process(target=run_once, args=(tmp_path / "log",))
    process.start()
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 0, printed
    assert "1 equal bundles, 0 different" in printed

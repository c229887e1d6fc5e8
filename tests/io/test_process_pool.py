import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from streetvision.io import process_pool as workers

CALLER = """
import signal, sys
from streetvision.io import process_pool as workers
from tests.io.test_process_pool import sleep_long

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    list(workers.run_in_processes(sleep_long, [sys.argv[1]], 1))
"""


def sleep_long(file, threads):
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(true):
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nobody_works_on_for_a_caller_that_is_gone(tmp_path, how):
    script, file = tmp_path / "caller.py", tmp_path / "pid"
    script.write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    caller = subprocess.Popen([sys.executable, str(script), str(file)], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: file.is_file() and file.read_text())
    worker = int(file.read_text())
    assert alive(worker)
    caller.send_signal(how)
    caller.wait(timeout=30)
    wait_until(lambda: not alive(worker))


def test_an_interrupt_while_a_process_starts_leaves_none_behind(tmp_path, monkeypatch):
    start = ForkServerProcess.start

    def start_and_hear_of_it(process):
        start(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ForkServerProcess, "start", start_and_hear_of_it)
    with pytest.raises(KeyboardInterrupt):
        list(workers.run_in_processes(sleep_long, [str(tmp_path / "pid")], 1))
    assert not active_children()


@pytest.mark.parametrize(("asked", "each"), [(None, 4), ("1", 1), ("3,2", 3), ("0", 4), ("many", 4)])
def test_processes_share_the_cores_unless_the_environment_says_otherwise(monkeypatch, asked, each):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert workers._threads(2) == each
    assert os.environ["OMP_NUM_THREADS"] == (asked or "4")

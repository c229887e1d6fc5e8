import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from streetvision.io import process_pool

CALLER = """
import signal, sys
from streetvision.io import process_pool
from tests.io.test_process_pool import sleep_long

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT by default
    list(process_pool.run_in_processes(sleep_long, [sys.argv[1]], 1))
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


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("stop_signal", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_caller(tmp_path, stop_signal):
    script, file = tmp_path / "caller.py", tmp_path / "pid"
    script.write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    caller = subprocess.Popen([sys.executable, str(script), str(file)], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: file.is_file() and file.read_text())
    worker = int(file.read_text())
    assert alive(worker)
    caller.send_signal(stop_signal)
    caller.wait(timeout=30)
    wait_until(lambda: not alive(worker))


def test_an_interrupt_during_a_start_leaves_no_process(tmp_path, monkeypatch):
    start = ForkServerProcess.start

    def start_and_interrupt(process):
        start(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ForkServerProcess, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(process_pool.run_in_processes(sleep_long, [str(tmp_path / "pid")], 1))
    assert not active_children()


@pytest.mark.parametrize(("environment", "threads"), [(None, 4), ("1", 1), ("3,2", 3), ("0", 4), ("many", 4)])
def test_processes_share_the_cores_unless_the_environment_sets_the_threads(monkeypatch, environment, threads):
    monkeypatch.setattr(process_pool, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert process_pool._threads_per_process(2) == threads
    assert os.environ["OMP_NUM_THREADS"] == (environment or "4")

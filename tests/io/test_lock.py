import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from streetvision.contracts.errors import ArtifactError, MachineError
from streetvision.io.lock import run_lock

HOLD = """
import sys
from pathlib import Path
from streetvision.io.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_error_names_the_process_that_holds_the_lock(tmp_path, holder):
    with pytest.raises(ArtifactError, match=f"in use by process {holder.pid}"), run_lock(tmp_path / ".lock"):
        pass


def test_a_killed_process_releases_the_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with run_lock(tmp_path / ".lock"):
        pass


def test_a_released_lock_can_be_acquired_again(tmp_path):
    for _ in range(2):
        with run_lock(tmp_path / ".lock"):
            pass


def test_a_holder_without_a_pid_is_called_another_process(tmp_path):
    path = tmp_path / ".lock"
    with path.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with (
            pytest.raises(ArtifactError, match="in use by another process") as raised,
            run_lock(path, option="out=DIR"),
        ):
            pass
    assert raised.value.hint.endswith("out=DIR")


def test_the_error_names_the_file_that_the_lock_is_for(tmp_path, holder):
    file = tmp_path / "served.jsonl"
    with pytest.raises(ArtifactError) as raised, run_lock(tmp_path / ".lock", option="log=FILE", file=file):
        pass
    assert raised.value.message == f"file {str(file)!r} is in use by process {holder.pid}"
    assert "another file: log=FILE" in raised.value.hint


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*\.lock"), run_lock(tmp_path / "file" / ".lock"):
        pass


FORK = """
import os, sys, time
from pathlib import Path
from streetvision.io.lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    sys.stdin.read()
"""


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    with pytest.raises(ArtifactError), run_lock(tmp_path / ".lock"):
        pass
    process.kill()
    process.wait()
    try:
        with run_lock(tmp_path / ".lock"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_file_that_is_a_link_is_rejected(tmp_path, link):
    (tmp_path / "other.txt").write_text("content")
    link(tmp_path / "other.txt", tmp_path / ".lock")
    with pytest.raises(ArtifactError, match="lock"), run_lock(tmp_path / ".lock"):
        pass
    assert (tmp_path / "other.txt").read_text() == "content"


def test_a_file_system_without_locks_is_a_fault_of_the_machine(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(MachineError, match="cannot lock"), run_lock(tmp_path / ".lock"):
        pass

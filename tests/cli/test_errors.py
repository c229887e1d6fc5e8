"""A fault of one thing is not reported as a fault of another."""

import errno
import multiprocessing
import os

import pytest
import torch

from streetvision.cli.errors import flushed_output, report_errors


def message_of(error: Exception, capsys) -> str:
    with pytest.raises(SystemExit) as stop, report_errors(debug=False):
        raise error
    assert stop.value.code == 2
    return capsys.readouterr().err


def os_error(code: int, path: object = None) -> OSError:
    return OSError(code, os.strerror(code), *([] if path is None else [str(path)]))


def test_a_file_that_may_not_be_read_is_not_reported_as_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot read" in message_of(os_error(errno.EACCES, tmp_path / "closed"), capsys)


def test_a_permission_that_is_missing_for_another_reason_names_no_disk(tmp_path, capsys):
    assert "disk" not in message_of(os_error(errno.EACCES, tmp_path / "missing"), capsys)


def test_a_full_disk_is_named(tmp_path, capsys):
    assert "free disk space" in message_of(os_error(errno.ENOSPC, tmp_path / "x"), capsys)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to allocate shared memory(shm) for file </torch_12_34>: No space left on device (28)"),
        RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)"),
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ..."),
        os_error(errno.ENOSPC, "/dev/shm/torch_12"),  # noqa: S108
    ],
)
def test_shared_memory_is_named(error, capsys):
    message = message_of(error, capsys)
    assert "shared memory" in message
    assert "loader.num_workers=0" in message


def test_too_little_memory_of_a_gpu_is_named_with_a_setting(capsys):
    message = message_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), capsys)
    assert "GPU" in message
    assert "training.micro_batch_size" in message


def test_a_pipe_to_a_process_that_was_killed_is_not_standard_output(capsys):
    ours, other = multiprocessing.Pipe()
    other.close()
    with pytest.raises(SystemExit), flushed_output():
        ours.send("task")
    message = capsys.readouterr().err
    assert "worker process" in message
    assert "standard output" not in message


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_semaphores_that_cannot_be_created_are_shared_memory(code, capsys, monkeypatch):
    def fail(*_, **__):
        raise os_error(code)

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", fail)
    with pytest.raises(SystemExit), report_errors(debug=False):
        multiprocessing.Lock()
    assert "shared memory" in capsys.readouterr().err

"""A disk that becomes full or read-only during a run: one error line, nothing is lost, and the run resumes."""

import errno
import os

import pytest

from tests.robustness.chaos import TINY_RUN, digests, strays_in


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    from streetvision.cli.app import main

    root = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.raises(SystemExit):
        main(["train", f"run_dir={root}", *TINY_RUN])
    return digests(root)


@pytest.mark.parametrize(("problem", "at"), [(errno.ENOSPC, 3), (errno.EROFS, 14)])
def test_the_run_stops_with_one_line_and_resumes(command, expected, tmp_path, monkeypatch, problem, at):
    # The scenes are written by other processes, so only writes of the run itself fail here.
    fsync, count = os.fsync, iter(range(10_000))

    def fail(descriptor):
        if next(count) >= at:
            raise OSError(problem, os.strerror(problem))
        fsync(descriptor)

    monkeypatch.setattr("streetvision.io.atomic.os.fsync", fail)
    root = tmp_path / "run"
    code, _, err = command("train", f"run_dir={root}", *TINY_RUN)
    assert code == 2
    assert err.startswith("error: cannot write")
    assert os.strerror(problem) in err
    assert strays_in(root) == []
    monkeypatch.setattr("streetvision.io.atomic.os.fsync", fsync)
    assert command("train", f"run_dir={root}", *TINY_RUN)[0] == 0
    assert digests(root) == expected

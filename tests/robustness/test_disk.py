"""A disk that becomes full or read-only during a run: one error line, nothing is lost, and the run resumes."""

import errno
import os

import pytest

from tests.conftest import TINY_MODEL
from tests.robustness.chaos import digests, strays_in

ARCHIVED = [*TINY_MODEL, "data.class_names=[Clear,Roadwork]", "phase6.archive=true"]


@pytest.fixture(scope="module")
def expected(scenes, tmp_path_factory):
    from streetvision.cli.app import main

    root = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.raises(SystemExit):
        main(["train", f"data.root={scenes}", f"run_dir={root}", *ARCHIVED])
    return digests(root)


@pytest.mark.parametrize(("problem", "at"), [(errno.ENOSPC, 3), (errno.EROFS, 14)])
def test_the_run_stops_with_one_line_and_resumes(command, scenes, expected, tmp_path, monkeypatch, problem, at):
    fsync, count = os.fsync, iter(range(10_000))

    def fail(descriptor):
        if next(count) >= at:
            raise OSError(problem, os.strerror(problem))
        fsync(descriptor)

    monkeypatch.setattr("streetvision.io.atomic.os.fsync", fail)
    root = tmp_path / "run"
    line = ["train", f"data.root={scenes}", f"run_dir={root}", *ARCHIVED]
    code, _, err = command(*line)
    assert code == 2
    assert err.startswith("error: cannot write")
    assert os.strerror(problem) in err
    assert strays_in(root) == []
    monkeypatch.setattr("streetvision.io.atomic.os.fsync", fsync)
    assert command(*line)[0] == 0
    assert digests(root) == expected

"""A few mutated inputs; `make fuzz` runs thousands."""

import shutil

import pytest

from tests.robustness.fuzz import (
    archive_cases,
    array_cases,
    file_cases,
    image_cases,
    image_seeds,
    request_cases,
    run_cases,
    write_config,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def test_mutated_images():
    tally = run_cases(image_cases(170, seed=1))
    assert tally.problems == []
    assert tally.outcomes["result"] > 20
    assert tally.outcomes["error"] > 20


def test_mutated_archives_lose_nothing_silently(tmp_path):
    tally = run_cases(archive_cases(280, seed=1, scratch=tmp_path))
    assert tally.problems == []


def test_values_of_the_python_api():
    tally = run_cases(array_cases(200, seed=1))
    assert tally.problems == []
    assert min(tally.outcomes["result"], tally.outcomes["error"]) > 20


def test_mutated_requests(finished_run):
    tally = run_cases(request_cases(200, seed=1, run=finished_run))
    assert tally.problems == []


def test_the_images_are_valid_before_the_mutation():
    from streetvision.data.decode import decode_image

    for data in image_seeds().values():
        assert decode_image(data).shape[0] == 3


def test_mutated_files(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    write_config(run)
    tally = run_cases(file_cases(140, seed=1, run=run, scratch=tmp_path))
    assert tally.problems == []
    assert tally.outcomes["error"] > 20


def test_large_and_crashing_cases_are_reported():
    def allocate():
        return bytearray(64 * 2**20)

    def crash():
        raise KeyError("x")

    tally = run_cases(iter([("large", allocate), ("broken", crash)]), most_megabytes=32)
    assert [problem.split(":")[0] for problem in tally.problems] == ["large", "broken"]

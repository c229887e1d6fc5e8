"""A few of the mutants; `make fuzz` runs thousands."""

import shutil

import pytest

from tests.robustness.fuzz import file_cases, image_cases, image_seeds, judge, write_config

pytestmark = pytest.mark.filterwarnings("ignore")


def test_mutated_images():
    tally = judge(image_cases(340, seed=1))
    assert tally.problems == []
    assert tally.endings["answer"] > 20
    assert tally.endings["error"] > 20


def test_the_pictures_that_are_mutated_are_whole():
    from streetvision.data.decode import decode_image

    for data in image_seeds().values():
        assert decode_image(data).shape[0] == 3


def test_mutated_files(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    write_config(run)
    tally = judge(file_cases(140, seed=1, run=run, scratch=tmp_path))
    assert tally.problems == []
    assert tally.endings["error"] > 20


def test_what_a_case_must_not_do_is_noticed():
    def answer():
        return bytearray(64 * 2**20)

    def crash():
        raise KeyError("x")

    tally = judge(iter([("large", answer), ("broken", crash)]), most_megabytes=32)
    assert [problem.split(":")[0] for problem in tally.problems] == ["large", "broken"]

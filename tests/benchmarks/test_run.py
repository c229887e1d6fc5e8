import time
from functools import partial
from importlib import import_module

import pytest

from benchmarks import bench_inference, bench_startup
from benchmarks.figures import Figure, interleaved_median
from benchmarks.run import SECTIONS, run_benchmarks
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.synthetic.scenes import SceneConfig


def test_both_are_called_in_turn_with_one_warm_up():
    calls = []
    interleaved_median(lambda: calls.append("ours"), lambda: calls.append("theirs"), repeats=2)
    assert calls == ["ours", "theirs"] * 3


def test_the_ratio_is_ours_over_theirs():
    assert Figure("a", 2.0, "b", 4.0).ratio == 0.5


def test_start_up_is_measured_of_commands_that_end_as_they_should(monkeypatch):
    monkeypatch.setattr(bench_startup, "REPEATS", 1)
    monkeypatch.setattr(bench_startup, "SCENES", 8)
    monkeypatch.setattr(bench_inference, "SceneConfig", partial(SceneConfig, width=96, height=72))
    monkeypatch.setattr(
        bench_startup, "interleaved_median", lambda *functions: tuple(timed_once(each) for each in functions)
    )
    assert all(figure.value > 0 and figure.baseline_value > 0 for figure in bench_startup.bench_startup(Silent()))


def timed_once(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def test_an_unknown_section_lists_the_choices():
    with pytest.raises(ConfigError, match="'speed'"):
        run_benchmarks("speed", Silent())


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_its_module(section):
    assert callable(getattr(import_module(f"benchmarks.bench_{section}"), f"bench_{section}"))

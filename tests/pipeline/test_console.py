import time

import pytest

from streetvision.pipeline import console as console_module
from streetvision.pipeline.console import Console


def test_warnings_go_to_standard_error_and_lines_to_standard_output(capsys):
    console = Console()
    console.line("data", "3 images")
    console.warn("1 image is left out")
    out, err = capsys.readouterr()
    assert "3 images" in out
    assert "1 image is left out" in err
    assert "left out" not in out


@pytest.fixture
def terminal(monkeypatch):
    """Standard output counts as a terminal, with bars after a twentieth of a second."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(console_module, "BAR_AFTER_SECONDS", 0.05)


@pytest.mark.usefixtures("terminal")
def test_a_bar_appears_while_the_first_item_is_made(capsys):
    shown = []

    def items():
        time.sleep(0.6)
        shown.append(capsys.readouterr().out)
        yield 1

    assert list(Console().track(items(), total=1, label="load")) == [1]
    assert "load" in shown[0]
    assert "0/1" in shown[0]


@pytest.mark.usefixtures("terminal")
def test_a_warning_during_a_bar_is_printed_once_and_the_bar_goes_on(capsys):
    console = Console()
    for item in console.track(range(2), total=2, label="read"):
        time.sleep(0.3)
        if item == 0:
            assert "read" in capsys.readouterr().out
            console.warn("an image is damaged")
    out, err = capsys.readouterr()
    assert err.count("an image is damaged") == 1
    assert "1/2" in out


@pytest.mark.usefixtures("terminal")
def test_a_loop_within_another_ends_neither(capsys):
    console = Console()
    for _ in console.track(range(2), total=2, label="gate"):
        assert list(console.track(range(3), total=3, label="cache")) == [0, 1, 2]
        time.sleep(0.2)
    assert "gate" in capsys.readouterr().out


def test_a_short_loop_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(Console().track(range(3), total=3, label="quick")) == [0, 1, 2]
    assert "quick" not in capsys.readouterr().out

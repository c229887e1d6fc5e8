import pytest

from streetvision.contracts.progress import Silent


def never():
    raise AssertionError("the note is not shown")


def test_silent_yields_every_item_and_prints_nothing(capsys):
    progress = Silent()
    assert list(progress.track(iter("abc"), total=3, label="letters", note=never)) == ["a", "b", "c"]
    progress.warn("a warning")
    progress.epoch({"epoch": 1})
    assert capsys.readouterr() == ("", "")


def test_silent_takes_an_item_only_when_it_is_requested():
    source = iter(range(3))
    tracked = Silent().track(source, total=3, label="numbers")
    assert next(tracked) == 0
    assert next(source) == 1
    assert list(tracked) == [2]
    with pytest.raises(StopIteration):
        next(tracked)

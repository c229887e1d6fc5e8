import pytest

from streetvision.contracts.progress import Silent


def never():
    raise AssertionError("nobody sees the note")


def test_silence_hands_every_item_on_and_shows_nothing(capsys):
    progress = Silent()
    assert list(progress.track(iter("abc"), total=3, label="letters", note=never)) == ["a", "b", "c"]
    progress.warn("mind the gap")
    progress.epoch({"epoch": 1})
    assert capsys.readouterr() == ("", "")


def test_silence_takes_an_item_when_it_is_asked_for_and_no_sooner():
    source = iter(range(3))
    tracked = Silent().track(source, total=3, label="numbers")
    assert next(tracked) == 0
    assert next(source) == 1
    assert list(tracked) == [2]
    with pytest.raises(StopIteration):
        next(tracked)

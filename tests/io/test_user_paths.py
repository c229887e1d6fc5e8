import os
from pathlib import Path

import pytest

from streetvision.contracts.errors import ConfigError
from streetvision.io.user_paths import user_path, user_source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize("text", ["~/photos", Path("~/photos")])
def test_the_home_directory_is_expanded(text, home):
    assert user_path(text) == home / "photos"


@pytest.mark.parametrize("text", ["photos/~", "a~b", "/data/~x", "~nobody-of-this-name/x", "~a.jpg", "hf:~", "~\0"])
def test_other_paths_stay_as_they_are(text):
    assert user_path(text) == Path(text)


def test_a_file_that_exists_as_named_is_not_expanded(tmp_path):
    (tmp_path / "~").mkdir()
    (tmp_path / "~root").touch()
    assert user_path("~") == Path("~")
    assert user_path("~root") == Path("~root")


def test_an_unknown_home_directory_is_an_error(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="home directory is not known"):
        user_path("~/photos")


def test_a_name_on_the_hub_keeps_its_slashes_and_a_path_is_expanded(home):
    assert user_source("hf://owner/name") == "hf://owner/name"
    assert user_source("~/photos") == str(home / "photos")
    assert user_source(Path("photos")) == "photos"

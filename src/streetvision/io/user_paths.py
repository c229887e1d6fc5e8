"""The home directory in paths that a user gives: the only place where `~` is expanded."""

import os
from pathlib import Path

from streetvision.contracts.errors import ConfigError


def user_path(path: str | Path) -> Path:
    """Return a path that a user gave, with `~` or `~user` in front replaced by the home directory.

    A path that exists as it is named, and the name of an unknown user, stay as they are.

    Raises:
        ConfigError: The path starts with `~/`, and the home directory is not known.
    """
    text = os.fspath(path)
    if not text.startswith("~") or "\0" in text or os.path.lexists(text):
        return Path(text)
    expanded = os.path.expanduser(text)  # noqa: PTH111 (Path.expanduser raises RuntimeError for an unknown user)
    if expanded.startswith("~") and text.partition("/")[0] == "~":
        raise ConfigError(f"{text!r} starts with ~, and the home directory is not known", "write the whole path")
    return Path(expanded)


def user_source(source: str | os.PathLike[str]) -> str:
    """Return a data set that a user gave: a path as `user_path` returns it; hf://owner/name stays as it is.

    Raises:
        ConfigError: See `user_path`.
    """
    text = os.fspath(source)
    return text if "://" in text else str(user_path(text))

"""The one family of errors that a user can cause and mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class StreetVisionError(Exception):
    """A failure the person at the keyboard can act on: what is wrong, and what to do about it.

    The command line prints `message` after `error:` and `hint` below it, and exits with code 2.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class ConfigError(StreetVisionError):
    """A setting that does not exist, or whose value is not allowed."""


class DataError(StreetVisionError):
    """Images, labels or an index that cannot be used as they are."""


class ArtifactError(StreetVisionError):
    """A file of a run or a bundle that is missing, damaged or belongs to another chain."""


class LeakageError(StreetVisionError):
    """A phase asked for a split that it must not see, or a group stands in two splits."""


class NotFittedError(StreetVisionError):
    """A calibrator or fusion was used before it was fitted."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table: it suggests the nearest one and lists them all."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    told = "; ".join(known) if any("," in choice for choice in known) else ", ".join(known)
    return ConfigError(f"there is no {kind} {name!r}{hint}", f"choose one of: {told}")

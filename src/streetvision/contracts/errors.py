"""Errors that a user can cause and fix."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

MAX_SUGGESTIONS = 3
MAX_LISTED = 16
"""The hint of `unknown_name` lists all choices up to this number."""


class StreetVisionError(Exception):
    """A failure that the user can fix. The command line prints it without a traceback and exits with code 2."""

    code: ClassVar[str] = "error"
    """Stable identifier of the class, for programs and tests."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        """What is wrong with the given value, and what is allowed."""
        self.hint = hint
        """One action that fixes it."""


class ConfigError(StreetVisionError):
    """A setting does not exist, or its value is not allowed."""

    code = "config"


class DataError(StreetVisionError):
    """Images, labels or an index cannot be used."""

    code = "data"


class ArtifactError(StreetVisionError):
    """A file of a run or a bundle is missing, damaged, or does not match the other files."""

    code = "artifact"


class LeakageError(StreetVisionError):
    """A phase requested a split that it may not open, or one group is in two splits."""

    code = "leakage"


class MachineError(StreetVisionError):
    """This machine cannot do the work: a decoder does not load, shared memory or open files have run out."""

    code = "machine"


class NotFittedError(StreetVisionError):
    """A calibrator or fusion was used before it was fitted."""

    code = "not_fitted"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not in a table.

    Suggestions are the choices that start with `name`, then the most similar ones. The hint lists all choices when they
    are few, else the suggestions.
    """
    known = sorted(choices)
    prefixed = [choice for choice in known if name and choice.startswith(name)]
    similar = get_close_matches(name, known, n=MAX_SUGGESTIONS)
    suggestions = list(dict.fromkeys([*prefixed, *similar]))[:MAX_SUGGESTIONS]
    question = f"; did you mean {suggestions[0]!r}?" if suggestions else ""
    listed = known if len(known) <= MAX_LISTED else suggestions or known[:MAX_LISTED]
    separator = "; " if any("," in choice for choice in listed) else ", "
    more = "" if len(listed) == len(known) else f" (of {len(known)})"
    return ConfigError(f"there is no {kind} {name!r}{question}", f"choose one of: {separator.join(listed)}{more}")


TRAIN_MODULES = frozenset(
    {
        "datasets",
        "hydra",
        "lightning",
        "matplotlib",
        "omegaconf",
        "onnx",
        "onnxscript",
        "peft",
        "pyarrow",
        "sklearn",
        "tensorboard",
        "threadpoolctl",
        "timm",
        "torch",
        "torchvision",
        "transformers",
        "yaml",
    }
)
"""Modules of the packages in the extra `train`."""


def missing_package(error: ModuleNotFoundError) -> ConfigError | None:
    """Return the error for a package of the extra `train` that is not installed; None for any other module."""
    package = (error.name or "").partition(".")[0]
    if package not in TRAIN_MODULES:
        return None
    return ConfigError(
        f"this needs {package}, which is not installed: without the extra `train`, streetvision predicts and serves",
        "pip install 'streetvision[train]'",
    )

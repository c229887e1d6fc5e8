"""YAML that a person wrote: settings, tables of pairs, searches. Each error names the file and what is wrong in it."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from yaml import safe_load

from streetvision.contracts.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> object:
    """What the file holds; raises ConfigError where it cannot be read or is not YAML."""
    try:
        return safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except Exception as error:  # of a value in the wrong form, such as the date 2026-13-45, YAML raises nearly any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{str(path)!r} is not YAML: {reason}") from error


def read_declared(path: Path, kind: type[Model], *, remedy: str) -> Model:
    """What the file holds as a `kind`; raises ConfigError that names the first wrong field."""
    content = read_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{str(path)!r}, {where}: {first['msg']}", remedy) from error

"""What all sections of the configuration share: their base class, seeds, digests, and variants of a section."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic.fields import FieldInfo

from streetvision.contracts.errors import ConfigError

PLAIN = re.compile(r"(?!(yes|no|on|off|true|false|null)$)[^\W\d_]([\w -]*\w)?|(0|[1-9]\d*)(\.\d*[1-9])?", re.IGNORECASE)
"""Text that YAML reads as itself, or as a number that is written like this again."""

RESULT_NEUTRAL = "result neutral"
"""Annotates a setting that does not change a result, for example a number of processes."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed for numpy and torch, with room for seeds that are counted on from it."""


GATE_WORDS = BeforeValidator(
    lambda value: {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
)
"""YAML reads on and off as booleans."""
GateSetting = Annotated[Literal["on", "off", "only_report"], GATE_WORDS]
"""Whether a stage has to be better than the model without it."""


class Section(BaseModel):
    """A part of the configuration. It cannot be changed; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def result_affecting(section: BaseModel) -> dict[str, JsonValue]:
    """Return the settings of a section that affect a result, for a digest: all that are not RESULT_NEUTRAL."""
    neutral = {name for name, field in type(section).model_fields.items() if RESULT_NEUTRAL in field.metadata}
    return section.model_dump(mode="json", exclude=neutral)


def variants(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """Return the models that a field takes: several for a discriminated union, none for a plain value."""
    return _models(field.annotation)


def _models(annotation: Any) -> tuple[type[BaseModel], ...]:
    if isinstance(annotation, type):
        return (annotation,) if issubclass(annotation, BaseModel) else ()
    # A union in Annotated[...] nests its arguments; a tuple of models does not occur.
    return tuple(model for argument in get_args(annotation) for model in _models(argument))


def section_class(field: FieldInfo) -> type[BaseModel]:
    """Return the class by which a phase requests a section: of a union, the nearest base class of all its variants."""
    return common_base(variants(field))


def common_base(models: Sequence[type[BaseModel]]) -> type[BaseModel]:
    """Return the nearest base class that all `models` have."""
    first, *others = models
    return next(base for base in first.__mro__ if all(issubclass(other, base) for other in others))


def list_setting(key: str, values: Iterable[str]) -> str:
    """Return KEY=[VALUE,...] for a hint: quoted for a shell, with quotes around values that YAML reads as another type.

    Args:
        key: A setting that is a list.
        values: Its values.
    """
    quoted = (value if PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False) for value in values)
    return shlex.quote(f"{key}=[{','.join(quoted)}]")


def no_effect(key: str, condition: str, hint: str) -> ConfigError:
    """Return the error for a setting that the other settings make ineffective."""
    return ConfigError(f"`{key}` has no effect when {condition}", f"{hint}, or leave {key} out")

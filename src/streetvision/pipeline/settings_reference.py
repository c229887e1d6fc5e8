"""Write docs/reference/configuration.md from the models of the configuration: `make docs-reference`."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from streetvision.contracts.settings import RESULT_NEUTRAL, section_class, variants
from streetvision.pipeline.config import compose_config, groups
from streetvision.pipeline.settings import RunConfig, Setting, all_settings

HEADER = """# Configuration reference

Set a key with `KEY=VALUE` on the command line or in the file of `--config`; a group with `GROUP=NAME`.
Later sources win: defaults of the models, packaged files, `--config`, command line.

"Only with" names the choices under which a setting has an effect. Under any other choice it is refused.

This page is generated from the models. Do not edit it.
"""
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def configuration_page() -> str:
    """Return the page in Markdown: the groups, then a table of keys for each section."""
    lines = [HEADER, "## Groups", "", "| Group | Names |", "|---|---|"]
    lines += [f"| `{group}` | {', '.join(f'`{name}`' for name in names)} |" for group, names in groups().items()]
    general = [setting for setting in all_settings().values() if "." not in setting.key]
    lines += ["", *_table("General", "", general)]
    for name, field in RunConfig.model_fields.items():
        if variants(field):
            inside = [s for s in all_settings().values() if s.key.startswith(f"{name}.")]
            lines += ["", *_table(f"`{name}`", _first_paragraph(section_class(field)), inside)]
    return "\n".join(lines) + "\n"


def _table(title: str, summary: str, settings: list[Setting]) -> Iterator[str]:
    yield from (f"## {title}", "")
    if summary:
        yield from (summary, "")
    yield from ("| Key | Type | Default | Description | Only with |", "|---|---|---|---|---|")
    for setting in settings:
        if not _is_part_of_a_mapping(setting):
            only = "" if setting.always else "<br>".join(f"`{choice}`" for choice in setting.models)
            cells = (f"`{setting.key}`", _type(setting), _default(setting), description(setting), only)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _is_part_of_a_mapping(setting: Setting) -> bool:
    return not setting.key.endswith(setting.name)


def _type(setting: Setting) -> str:
    model = next(iter(setting.models.values()))
    metadata = model.model_fields[setting.name].metadata
    bounds = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in BOUNDS.items() if hasattr(m, name)]
    return ", ".join([_type_name(setting.type), *bounds])


def _type_name(kind: Any) -> str:
    if kind is NoneType or kind is None:
        return "null"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{_value(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        parts = [_type_name(argument) for argument in arguments if argument is not ...]
        return f"list of {parts[0]}" if arguments[-1] is ... else f"[{', '.join(parts)}]"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping"
    if hasattr(kind, "__metadata__"):
        return _type_name(arguments[0])
    name = str(kind.__name__)
    return {"str": "text", "Path": "path"}.get(name, name)


def _default(setting: Setting) -> str:
    defaults = {}
    for choice, model in setting.models.items():
        field = model.model_fields[setting.name]
        default = _packaged_default(setting.key) if field.is_required() else field.default
        defaults[choice.rpartition("=")[2]] = f"`{_value(default)}`"
    if len(set(defaults.values())) == 1:
        return next(iter(defaults.values()))
    return "<br>".join(f"{choice}: {value}" for choice, value in defaults.items())


def _packaged_default(key: str) -> object:
    """The value of a key that has no default in its model, as the packaged files set it."""
    value: object = compose_config([])
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in value.items())}}}"
    return str(value)


def description(setting: Setting) -> str:
    """Return the docstring of a setting's field, and whether it affects results."""
    model = next(iter(setting.models.values()))
    texts = (_field_docstrings(base).get(setting.name) for base in model.__mro__ if issubclass(base, BaseModel))
    text = next((text for text in texts if text), "")
    neutral = RESULT_NEUTRAL in model.model_fields[setting.name].metadata
    return text + (" Does not affect results." if neutral and text else "")


@cache
def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    if model is BaseModel:
        return {}
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            assert isinstance(statement.target, ast.Name)
            found[statement.target.id] = re.sub(r"\s+", " ", ast.literal_eval(after.value)).strip()
    return found


def _first_paragraph(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").partition("\n\n")[0].replace("\n", " ")

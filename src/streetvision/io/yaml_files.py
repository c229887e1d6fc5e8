"""YAML that a person wrote: settings, tables of pairs, searches. Each error names the file and what is wrong in it."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from yaml import AliasEvent, MappingNode, SafeLoader, YAMLError, load
from yaml.nodes import Node

from streetvision.contracts.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _Plain(SafeLoader):
    """Plain values; no name twice, and no alias inside an anchor, by which a page would unfold to a library."""

    _anchored = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            if self._anchored:
                raise YAMLError(f"an alias inside an anchor: *{event.anchor}")
            return super().compose_node(parent, index)
        anchored = event.anchor is not None
        self._anchored += anchored
        node = super().compose_node(parent, index)
        self._anchored -= anchored
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise YAMLError(f"{twice} stands twice")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> object:
    """What the file holds; raises ConfigError where it cannot be read or is not YAML."""
    try:
        return load(path.read_text(encoding="utf-8"), Loader=_Plain)  # noqa: S506 # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except Exception as error:  # of a value in the wrong form, such as the date 2026-13-45, YAML raises nearly any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{str(path)!r} is not YAML: {reason}") from error


def read_yaml_model(path: Path, kind: type[Model], *, hint: str) -> Model:
    """What the file holds as a `kind`; raises ConfigError that names the first wrong field."""
    content = read_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{str(path)!r}, {where}: {first['msg']}", hint) from error

"""YAML files written by users. Each error names the file and the problem."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from yaml import AliasEvent, MappingNode, SafeLoader, YAMLError, load
from yaml.nodes import Node

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.io.atomic import check_regular

Model = TypeVar("Model", bound=BaseModel)

MAX_YAML_BYTES = 2**20


class _StrictLoader(SafeLoader):
    """Rejects duplicate keys, and aliases inside anchors, which can expand a small file without limit."""

    _anchor_depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            if self._anchor_depth:
                raise YAMLError(f"an alias inside an anchor: *{event.anchor}")
            return super().compose_node(parent, index)
        is_anchor = event.anchor is not None
        self._anchor_depth += is_anchor
        node = super().compose_node(parent, index)
        self._anchor_depth -= is_anchor
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if duplicate := next((key for key in keys if keys.count(key) > 1), None):
            raise YAMLError(f"duplicate key {duplicate}")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> object:
    """Return the content of a YAML file; raises ConfigError if it cannot be read or is not valid."""
    try:
        check_regular(path, limit=MAX_YAML_BYTES)
        return load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 # a SafeLoader
    except ArtifactError as error:
        raise ConfigError(error.message) from error
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except Exception as error:  # YAML raises many types, for example for the date 2026-13-45
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{str(path)!r} is not YAML: {reason}") from error


def read_yaml_model(path: Path, kind: type[Model], *, hint: str) -> Model:
    """Return the content of a YAML file as a model.

    Args:
        path: the file.
        kind: class of the model.
        hint: the hint of the error.

    Raises:
        ConfigError: the file cannot be read or is not valid; the message names the first invalid field.
    """
    content = read_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{str(path)!r}, {field}: {first['msg']}", hint) from error

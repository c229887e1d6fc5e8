import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from streetvision.contracts.errors import ConfigError
from streetvision.io.yaml_files import read_yaml, read_yaml_model


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: str
    b: str


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seeds: int
    pairs: list[Pair] = []


def test_the_content_is_returned_as_the_model(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("seeds: 3\npairs:\n  - {a: größer, b: kleiner}\n", encoding="utf-8")
    table = read_yaml_model(path, Table, hint="see the documentation")
    assert (table.seeds, table.pairs) == (3, [Pair(a="größer", b="kleiner")])


def test_an_unreadable_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.yaml': No such file"):
        read_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"a: b: c", b"\xff\xfe\xff", b"when: 2026-13-45", b"n: !!int ''", b"t: !!timestamp soon", b"[" * 5000],
)
def test_invalid_yaml_is_an_error_on_one_line(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.yaml' is not YAML: .") as raised:
        read_yaml(path)
    assert "\n" not in raised.value.message


def test_a_tag_executes_no_code(tmp_path, capfd):
    path = tmp_path / "x.yaml"
    path.write_text("!!python/object/apply:os.system ['echo executed']")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(path)
    assert capfd.readouterr().out == ""


@given(text=st.text(st.sampled_from("ab01:-[]{}!'\"&*#|>,.?% \n\t") | st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_a_value_or_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        read_yaml(path)
    except ConfigError as error:
        assert "x.yaml" in error.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seeds: many", "seeds: "),
        ("seeds: 3\npairs: [{a: x}]", r"pairs\.0\.b: "),
        ("seeds: 3\nsurprise: 1", "surprise: "),
        ("- seeds", "the file: "),
        ("", "the file: "),
    ],
)
def test_the_first_invalid_field_is_named_with_the_hint(tmp_path, text, field):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"table\.yaml', {field}") as raised:
        read_yaml_model(path, Table, hint="see the documentation")
    assert raised.value.hint == "see the documentation"


def test_an_alias_is_replaced_by_its_anchor(tmp_path):
    (tmp_path / "table.yaml").write_text("a: &few [1, 2]\nb: *few\nc: {d: *few}\n")
    assert read_yaml(tmp_path / "table.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "an alias inside an anchor"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "an alias inside an anchor"),
        ("training: {epochs: 3}\ntraining: {batch_size: 7}", "duplicate key training"),
    ],
)
def test_nested_aliases_and_duplicate_keys_are_rejected(tmp_path, text, reason):
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_yaml(tmp_path / "table.yaml")


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "x.yaml")

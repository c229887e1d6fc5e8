import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts import errors
from streetvision.contracts.errors import (
    MAX_LISTED,
    TRAIN_MODULES,
    ConfigError,
    StreetVisionError,
    missing_package,
    unknown_name,
)

CODES = {
    "ConfigError": "config",
    "DataError": "data",
    "ArtifactError": "artifact",
    "LeakageError": "leakage",
    "MachineError": "machine",
    "NotFittedError": "not_fitted",
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_each_class_has_a_stable_code(name, code):
    error = getattr(errors, name)("message", "hint")
    assert isinstance(error, StreetVisionError)
    assert (error.code, error.message, error.hint) == (code, "message", "hint")


def test_the_nearest_name_is_suggested():
    error = unknown_name("loss", "focl", ["simclr", "focal"])
    assert error.message == "there is no loss 'focl'; did you mean 'focal'?"
    assert error.hint == "choose one of: focal, simclr"


def test_a_prefix_match_is_suggested_before_a_similar_name():
    assert "did you mean 'isotonic_smooth'?" in unknown_name("calibrator", "iso", ["is", "isotonic_smooth"]).message


def test_without_a_similar_name_there_is_no_suggestion():
    assert unknown_name("loss", "xyz", ["simclr", "focal"]).message == "there is no loss 'xyz'"


def test_names_with_commas_are_separated_by_semicolons():
    assert unknown_name("pair", "x", ["loss, focal", "bf16"]).hint == "choose one of: bf16; loss, focal"


def test_of_many_choices_only_the_suggestions_are_listed():
    choices = [f"key{i:02}" for i in range(50)]
    assert unknown_name("key", "key4", choices).hint == "choose one of: key40, key41, key42 (of 50)"
    hint = unknown_name("key", "xyz", choices).hint
    assert hint == f"choose one of: {', '.join(choices[:MAX_LISTED])} (of 50)"


@given(
    name=st.text("abcx_'", max_size=8),
    choices=st.lists(st.text("abc_", min_size=1, max_size=8), min_size=1, max_size=MAX_LISTED, unique=True),
)
def test_few_choices_are_all_listed_in_order_and_the_suggestion_is_one_of_them(name, choices):
    error = unknown_name("phase", name, iter(choices))
    assert error.hint == f"choose one of: {', '.join(sorted(choices))}"
    start = f"there is no phase {name!r}"
    assert error.message in {start, *(f"{start}; did you mean {choice!r}?" for choice in choices)}


def test_the_hint_is_on_the_line_below_the_message():
    assert str(StreetVisionError("the disk is full", "free some space")) == "the disk is full\nfree some space"
    assert str(StreetVisionError("the disk is full")) == "the disk is full"
    assert StreetVisionError("the disk is full").hint is None


def test_the_modules_of_the_extra_train_are_those_of_its_packages():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", entry)[0] for entry in project["optional-dependencies"]["train"]}
    packages = importlib.metadata.packages_distributions()
    assert {name.lower() for module in TRAIN_MODULES for name in packages[module]} == names


def test_a_missing_package_of_the_extra_is_a_config_error():
    error = missing_package(ModuleNotFoundError("no torch", name="torch.nn"))
    assert isinstance(error, ConfigError)
    assert "streetvision[train]" in error.hint
    assert missing_package(ModuleNotFoundError("a fault", name="streetvision.gone")) is None
    assert missing_package(ModuleNotFoundError("without a name")) is None

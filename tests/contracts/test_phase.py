from pathlib import Path

import pytest
from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import LeakageError
from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import MAY_OPEN, Index, Partition, Row, Split


class Declared(BaseModel):
    epochs: int


class Undeclared(BaseModel):
    pass


ROWS = tuple(Row(path=f"{role}.jpg", label=1, sha256="0" * 64, width=4, height=3, brightness=0.5) for role in Split)
PARTITION = Partition(Index(Path("photos"), ("none", "roadwork"), ROWS), tuple(Split), fractions={}, seed=0)


@pytest.fixture
def loads():
    """The phases that have read splits.json, in order."""
    return []


@pytest.fixture
def make_context(loads):
    """Make the context of a phase by its id."""

    def make(phase):
        def load():
            loads.append(phase)
            return PARTITION

        return Context(phase, ArtifactSchema(Path("run")), Silent(), {Declared: Declared(epochs=5)}, load)

    return make


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("phase", MAY_OPEN)
def test_a_phase_gets_the_rows_of_its_own_splits_only(make_context, loads, phase, split):
    context = make_context(phase)
    if split in MAY_OPEN[phase]:
        assert [row.path for row in context.rows(split)] == [f"{split}.jpg"]
    else:
        with pytest.raises(LeakageError, match=f"{phase} requested {split}"):
            context.rows(split)
        assert loads == []


def test_a_phase_gets_the_settings_that_it_declared_only(make_context):
    context = make_context("phase2")
    assert context.settings(Declared).epochs == 5
    with pytest.raises(AssertionError, match="phase2 reads Undeclared without declaring it"):
        context.settings(Undeclared)


def test_the_splits_are_read_at_first_use_and_once(make_context, loads):
    context = make_context("phase2")
    context.settings(Declared)
    assert loads == []
    context.rows(Split.VAL_CALIB)
    assert context.class_names == ("none", "roadwork")
    assert loads == ["phase2"]


def test_every_phase_has_the_data_root_and_the_fingerprint(make_context):
    context = make_context("phase6")
    assert context.data_root == Path("photos")
    assert context.fingerprint == PARTITION.index.fingerprint

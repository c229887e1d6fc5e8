from pathlib import Path

import pytest
from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import LeakageError
from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import (
    MAY_OPEN,
    MAY_OPEN_OUTSIDE_FOLDS,
    NO_FOLD,
    Index,
    Partition,
    Row,
    Split,
)


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


N_FOLDS = 4
FOLD_OF_ROW = (*range(N_FOLDS), *range(N_FOLDS), NO_FOLD)
CROSS_FIT = Partition(
    Index(
        Path("photos"),
        ("none", "roadwork"),
        tuple(Row(f"{n}.jpg", n % 2, f"{n:064x}", 4, 3, 0.5, group=f"g{f}") for n, f in enumerate(FOLD_OF_ROW)),
    ),
    tuple(Split.VAL_TEST if fold == NO_FOLD else Split.TRAIN for fold in FOLD_OF_ROW),
    fractions={},
    seed=0,
    folds=FOLD_OF_ROW,
)


def cross_fit_context(phase):
    return Context(phase, ArtifactSchema(Path("run")), Silent(), {}, lambda: CROSS_FIT)


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("phase", MAY_OPEN)
def test_outside_the_folds_of_cross_fit_a_phase_gets_no_row_to_select_or_score(phase, split):
    context = cross_fit_context(phase)
    if split in MAY_OPEN_OUTSIDE_FOLDS[phase]:
        assert {row.group for row in context.rows(split)} == (
            {f"g{NO_FOLD}"} if split is Split.VAL_TEST else {f"g{fold}" for fold in range(N_FOLDS)}
        )
    else:
        with pytest.raises(LeakageError):
            context.rows(split)


def test_outside_the_folds_nothing_trains_and_scores():
    for phase, splits in MAY_OPEN_OUTSIDE_FOLDS.items():
        assert not {Split.TRAIN, Split.VAL_CALIB} <= splits, phase
        assert Split.VAL_SELECT not in splits, phase


@pytest.mark.parametrize("fold", range(N_FOLDS))
@pytest.mark.parametrize("phase", MAY_OPEN)
def test_in_a_fold_a_phase_gets_the_rows_of_its_roles_only(phase, fold):
    context = list(cross_fit_context(phase).folds())[fold]
    assert context.fold == fold
    groups = {}
    for split in Split:
        if split in MAY_OPEN[phase]:
            groups[split] = {row.group for row in context.rows(split)}
        else:
            with pytest.raises(LeakageError):
                context.rows(split)
    if Split.VAL_CALIB in groups:
        assert groups[Split.VAL_CALIB] == {f"g{fold}"}
    if Split.TRAIN in groups:
        assert f"g{fold}" not in groups[Split.TRAIN]
        assert not groups[Split.TRAIN] & groups.get(Split.VAL_SELECT, set())
    assert list(context.folds()) == []


def test_a_fold_has_a_folder_of_its_own_and_shares_the_caches_and_the_splits():
    schema = ArtifactSchema(Path("run"))
    fold = schema.in_fold(2)
    assert fold.phase1_checkpoint == Path("run/folds/2/phase1/model_best.pth")
    assert (fold.splits_json, fold.feature_cache_dir) == (schema.splits_json, schema.feature_cache_dir)

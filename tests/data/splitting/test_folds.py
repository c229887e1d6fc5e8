"""Folds of cross_fit: groups stay whole, every fold has both classes, earlier rows keep their fold."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import ArtifactError, DataError, LeakageError
from streetvision.contracts.split_contracts import NO_FOLD, NearDuplicateClusters, Protocol, Split
from streetvision.data.splitting.partition import FEWEST_FOLDS, count_fold_rows, make_folds
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from tests.data.splitting.test_partition import FRACTIONS, SOURCE, group_sizes, grouped, index_of, row, ungrouped


def make(index, *, folds=5, seed=0, **more):
    return make_folds(index, fractions=FRACTIONS, folds=folds, seed=seed, **more)


@given(sizes=group_sizes, seed=st.integers(0, 3), folds=st.integers(FEWEST_FOLDS, 8))
@settings(max_examples=25, deadline=None)
def test_groups_stay_whole_and_every_fold_has_both_classes(sizes, seed, folds):
    index = index_of([*grouped(sizes).rows, *ungrouped(12, 12).rows])
    partition = make(index, folds=folds, seed=seed)
    assert partition.protocol is Protocol.CROSS_FIT
    assert FEWEST_FOLDS <= partition.n_folds <= folds
    assert all(min(counts.values()) > 0 for counts in count_fold_rows(partition))
    fold_of_group = {}
    for entry, fold, role in zip(index.rows, partition.folds, partition.roles, strict=True):
        assert (fold == NO_FOLD) == (role is Split.VAL_TEST)
        assert role in (Split.TRAIN, Split.VAL_TEST)
        assert fold_of_group.setdefault(entry.group or entry.path, fold) == fold
    assert make(index_of(index.rows[::-1]), folds=folds, seed=seed).split_sha256 == partition.split_sha256


def test_folds_are_of_equal_size_and_val_test_has_its_share():
    partition = make(ungrouped(600, 200))
    assert len(partition.rows(Split.VAL_TEST)) == pytest.approx(800 * FRACTIONS[Split.VAL_TEST], abs=2)
    sizes = [sum(counts.values()) for counts in count_fold_rows(partition)]
    assert max(sizes) - min(sizes) <= 2


def test_in_a_fold_every_row_has_one_role_and_roles_rotate():
    partition = make(ungrouped(100, 50))
    calib = []
    for fold in range(partition.n_folds):
        splits = partition.in_fold(fold)
        parts = [{entry.path for entry in splits.rows(split)} for split in Split]
        assert sum(map(len, parts)) == len(set().union(*parts)) == len(partition.index.rows)
        assert splits.rows(Split.VAL_TEST) == partition.rows(Split.VAL_TEST)
        calib += [entry.path for entry in splits.rows(Split.VAL_CALIB)]
    assert sorted(calib) == sorted(entry.path for entry in partition.rows(Split.TRAIN))


def test_without_a_selection_all_rows_outside_the_fold_are_in_train():
    partition = make(grouped([(2, 1)] * 9))
    for fold in range(partition.n_folds):
        with_select, without = partition.in_fold(fold), partition.in_fold(fold, select=False)
        assert without.rows(Split.VAL_SELECT) == ()
        assert without.rows(Split.VAL_CALIB) == with_select.rows(Split.VAL_CALIB)
        rest = set(partition.rows(Split.TRAIN)) - set(with_select.rows(Split.VAL_CALIB))
        assert set(without.rows(Split.TRAIN)) == rest
        assert not {r.group for r in without.rows(Split.TRAIN)} & {r.group for r in without.rows(Split.VAL_CALIB)}


@given(sizes=group_sizes, chosen=st.sets(st.integers(0, 19), min_size=1), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_rows_that_were_chosen_for_their_label_are_trained_on_and_evaluated_in_no_fold(sizes, chosen, seed):
    others = [*grouped(sizes).rows, *ungrouped(14, 14).rows]
    groups = [None, others[0].group, "new"]
    more = [replace(row(f"more{i}.png", i % 2, group=groups[i % 3]), queue="uncertain") for i in sorted(chosen)]
    partition = make(index_of([*others, *more]), seed=seed)
    evaluated = set(partition.rows(Split.VAL_CALIB))
    assert not any(entry.train_only for entry in (*evaluated, *partition.rows(Split.VAL_TEST)))
    scored = []
    for fold in range(partition.n_folds):
        for select in (False, True):
            splits = partition.in_fold(fold, select=select)
            parts = {split: splits.rows(split) for split in Split}
            assert not any(entry.train_only for split in Split if split is not Split.TRAIN for entry in parts[split])
            names = [{entry.group or entry.path for entry in rows} for rows in parts.values()]
            assert sum(map(len, names)) == len(set().union(*names))
        scored += splits.rows(Split.VAL_CALIB)
    assert sorted(scored, key=lambda entry: entry.path) == sorted(evaluated, key=lambda entry: entry.path)
    content = json.loads(json.dumps(partition_to_json(partition)))
    assert partition_from_json(content, SOURCE).folds == partition.folds


def test_without_rows_that_may_be_evaluated_the_error_names_the_cause():
    chosen = [replace(entry, queue="uncertain") for entry in ungrouped(20, 20).rows]
    with pytest.raises(DataError, match="20 of them were not drawn at random"):
        make(index_of(chosen))


def test_few_groups_give_fewer_folds_and_too_few_are_an_error():
    assert make(grouped([(2, 1)] * 6)).n_folds == 5
    assert make(grouped([(2, 1)] * 5)).n_folds == 4
    assert make(grouped([(2, 1)] * 4)).n_folds == 3
    with pytest.raises(DataError, match="is missing from"):
        make(grouped([(2, 1)] * 3))
    with pytest.raises(DataError, match="class 'Roadwork' is missing from"):
        make(index_of([row("only.png", 1), *ungrouped(50, 0).rows]))


@pytest.mark.parametrize("n_groups", [1, 2])
def test_too_few_groups_next_to_a_given_val_test_are_an_error(n_groups):
    index = grouped([(2, 2)] * (n_groups + 1))
    test = {entry.sha256: NO_FOLD for entry in index.rows if entry.group == index.rows[0].group}
    with pytest.raises(DataError):
        make(index, existing_folds=test, keep_test=True)


@given(seed=st.integers(0, 3), more=st.integers(0, 40))
@settings(max_examples=10, deadline=None)
def test_earlier_rows_keep_their_fold(seed, more):
    old = [*grouped([(2, 2)] * 12).rows, *ungrouped(20, 20).rows]
    before = make(index_of(old), seed=seed)
    existing = {entry.sha256: fold for entry, fold in zip(old, before.folds, strict=True)}
    new = [row(f"new/{number}.png", number % 2, f"track {number % 20}") for number in range(more)]
    after = make(index_of([*new, *old]), seed=seed, existing_folds=existing)
    assert after.folds[len(new) :] == before.folds


def test_if_a_fold_lost_a_class_only_val_test_is_kept():
    index = index_of([*ungrouped(40, 0).rows, *(row(f"positive/{number}.png", 1) for number in range(5))])
    before = make(index)
    existing = {entry.sha256: fold for entry, fold in zip(index.rows, before.folds, strict=True)}
    removed = next(e for e, fold in zip(index.rows, before.folds, strict=True) if e.label == 1 and fold == 1)
    after = make(index_of([entry for entry in index.rows if entry is not removed]), existing_folds=existing)
    assert after.n_folds == 3
    assert set(before.rows(Split.VAL_TEST)) <= set(after.rows(Split.VAL_TEST))


def test_it_is_read_as_it_was_written_and_an_edit_is_found():
    partition = make(grouped([(2, 1)] * 30))
    content = json.loads(json.dumps(partition_to_json(partition)))
    assert partition_from_json(content, SOURCE) == partition

    def edited(**changes):
        changed = json.loads(json.dumps(content))
        for entry in changed["rows"]:
            if entry["split"] == "train":
                entry |= changes
                break
        return changed

    for changes in ({"fold": None}, {"fold": 10**6}, {"fold": -1}, {"split": "val_calib"}, {"split": "val_test"}):
        with pytest.raises(ArtifactError):
            partition_from_json(edited(**changes), SOURCE)
    first = next(fold for fold in partition.folds if fold != NO_FOLD)
    with pytest.raises((LeakageError, ArtifactError)):
        partition_from_json(edited(fold=(first + 1) % 5), SOURCE)
    with pytest.raises(ArtifactError, match="protocol"):
        partition_from_json(content | {"protocol": "split"}, SOURCE)


def test_near_duplicates_and_groups_must_not_be_in_two_folds():
    partition = make(ungrouped(40, 30))
    ends = [next(e.path for e, f in zip(partition.index.rows, partition.folds, strict=True) if f == k) for k in (0, 1)]
    clusters = NearDuplicateClusters(radius=12, correlation=0.9, pairs=1, clusters=(tuple(ends),))
    with pytest.raises(LeakageError, match="fold 0 and in fold 1"):
        make(ungrouped(40, 30), near_duplicates=clusters)
    joined = index_of([row("a", 0, "one"), row("b", 0, "one"), *ungrouped(40, 30).rows])
    with pytest.raises(LeakageError, match="already in fold 0 and fold 1"):
        make(joined, existing_folds={joined.rows[0].sha256: 0, joined.rows[1].sha256: 1})


def test_split_and_cross_fit_have_different_digests():
    partition = make(ungrouped(40, 30))
    assert partition.split_sha256 != replace(partition, folds=None).split_sha256

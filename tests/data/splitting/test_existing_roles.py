"""Partitions that keep existing roles, and partitions with near-duplicates."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import ArtifactError, LeakageError
from streetvision.contracts.split_contracts import NearDuplicateClusters, Partition, Split
from streetvision.data.splitting.partition import make_partition, split_conflicts
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from tests.data.splitting.test_partition import (
    FRACTIONS,
    SOURCE,
    group_sizes,
    grouped,
    index_of,
    make,
    roles_by_path,
    row,
    share,
    ungrouped,
)


class TestExistingRoles:
    """Images that are added later do not change the split of existing images."""

    @given(sizes=group_sizes, seed=st.integers(0, 3), more=st.integers(0, 30))
    @settings(max_examples=25, deadline=None)
    def test_every_old_row_keeps_its_split(self, sizes, seed, more):
        old = [*grouped(sizes).rows, *ungrouped(8, 8).rows]
        before = make(index_of(old), seed=seed)
        existing = {row.sha256: role for row, role in zip(old, before.roles, strict=True)}
        new = [row(f"new/{number}.png", number % 2, f"track {number}") for number in range(more)]
        after = make_partition(index_of([*new, *old]), fractions=FRACTIONS, seed=seed, existing_roles=existing)
        assert roles_by_path(before).items() <= roles_by_path(after).items()

    def test_new_rows_compensate_for_the_old_ones(self):
        old = ungrouped(40, 20).rows
        existing = {entry.sha256: Split.TRAIN for entry in old}
        new = [row(f"new/{number}.png", number % 2) for number in range(200)]
        after = make_partition(index_of([*old, *new]), fractions=FRACTIONS, seed=0, existing_roles=existing)
        for split in Split:
            assert share(after, split) == pytest.approx(FRACTIONS[split], abs=0.01)

    def test_a_new_row_of_an_old_group_follows_it(self):
        old = grouped([(2, 2)] * 12).rows
        before = make(index_of(list(old)))
        existing = {entry.sha256: role for entry, role in zip(old, before.roles, strict=True)}
        new = row("new.png", 0, "track 7")
        after = make_partition(index_of([*old, new]), fractions=FRACTIONS, seed=0, existing_roles=existing)
        assert roles_by_path(after)["new.png"] is roles_by_path(before)["7/0/0.png"]

    def test_a_new_row_between_two_splits_is_reported_and_old_rows_are_not(self):
        rows = [row("a", 0, "one"), row("b", 0, "one"), row("new", 0, "one"), row("c", 1)]
        existing = {rows[0].sha256: Split.TRAIN, rows[1].sha256: Split.VAL_TEST}
        assert set(split_conflicts(rows, existing)) == {"new"}
        with pytest.raises(LeakageError, match="group 'one' joins rows that are already in train and val_test"):
            make_partition(index_of(rows), fractions=FRACTIONS, seed=0, existing_roles=existing)


class TestNearDuplicates:
    def partition(self, clusters) -> Partition:
        found = NearDuplicateClusters(radius=12, correlation=0.9, pairs=1, clusters=clusters)
        return make_partition(ungrouped(20, 12), fractions=FRACTIONS, seed=0, near_duplicates=found)

    def test_a_pair_across_splits_is_a_leak(self):
        roles = roles_by_path(self.partition(()))
        ends = next((a, b) for a in roles for b in roles if roles[a] != roles[b])
        with pytest.raises(LeakageError, match="near-duplicates of"):
            self.partition((ends,))

    def test_clusters_are_read_and_checked(self):
        roles = roles_by_path(self.partition(()))
        together = tuple(path for path in roles if roles[path] is Split.TRAIN)[:2]
        value = json.loads(json.dumps(partition_to_json(self.partition((together,)))))
        assert value["near_duplicates"]["cross_split_pairs"] == 0
        assert partition_from_json(value, SOURCE).near_duplicates.clusters == (together,)
        value["near_duplicates"]["clusters"][0][0] = "elsewhere.png"
        with pytest.raises(ArtifactError, match="is not a row"):
            partition_from_json(value, SOURCE)
        value["near_duplicates"]["clusters"][0][0] = next(path for path in roles if roles[path] is Split.VAL_TEST)
        with pytest.raises(LeakageError, match="near-duplicates of"):
            partition_from_json(value, SOURCE)

    def test_roles_that_were_swapped_by_hand_are_detected(self):
        value = json.loads(json.dumps(partition_to_json(self.partition(()))))
        train = next(entry for entry in value["rows"] if (entry["split"], entry["label"]) == ("train", 0))
        test = next(entry for entry in value["rows"] if (entry["split"], entry["label"]) == ("val_test", 0))
        train["split"], test["split"] = test["split"], train["split"]
        with pytest.raises(ArtifactError, match="assignment_sha256"):
            partition_from_json(value, SOURCE)

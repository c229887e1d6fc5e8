import json
import os
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streetvision.contracts.errors import ArtifactError, DataError, LeakageError
from streetvision.contracts.split_contracts import Index, Partition, Row, Split
from streetvision.data.config import DataConfig
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import list_images
from streetvision.data.splitting.partition import check_fractions, count_rows, make_partition
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json

FRACTIONS = DataConfig().fractions
NAMES = ("None", "Roadwork")
SOURCE = Path("run/splits.json")
REAL_DATA = os.environ.get("STREETVISION_REAL_DATA")


def row(name: str, label: int, group: str | None = None) -> Row:
    return Row(name, label, sha256(name.encode()).hexdigest(), 8, 6, 0.5, group, columns={"weather": "rain"})


def index_of(rows: list[Row]) -> Index:
    return Index(Path("photos"), NAMES, tuple(rows))


def ungrouped(none: int, some: int) -> Index:
    return index_of([row(f"{number}.png", int(number < some)) for number in range(none + some)])


def grouped(sizes: list[tuple[int, int]]) -> Index:
    """One group for every (rows of class 0, rows of class 1)."""
    rows = []
    for group, counts in enumerate(sizes):
        for label, count in enumerate(counts):
            rows += [row(f"{group}/{label}/{number}.png", label, f"track {group}") for number in range(count)]
    return index_of(rows)


def make(index: Index, *, fractions=FRACTIONS, seed: int = 0) -> Partition:
    return make_partition(index, fractions=fractions, seed=seed)


def roles_by_path(partition: Partition) -> dict[str, Split]:
    return {row.path: role for row, role in zip(partition.index.rows, partition.roles, strict=True)}


def share(partition: Partition, split: Split) -> float:
    return len(partition.rows(split)) / len(partition.index.rows)


@st.composite
def fractions(draw) -> dict[Split, float]:
    parts = [draw(st.integers(1, 20)) for _ in Split]
    return {split: part / sum(parts) for split, part in zip(Split, parts, strict=True)}


group_sizes = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda counts: sum(counts) > 0), min_size=8, max_size=60
)


class TestWithoutGroups:
    @given(none=st.integers(40, 400), some=st.integers(40, 400), requested=fractions(), seed=st.integers(0, 9))
    @settings(max_examples=60, deadline=None)
    def test_every_class_is_within_a_row_of_its_fraction(self, none, some, requested, seed):
        assume(min(requested.values()) * min(none, some) >= 1)
        counts = count_rows(make(ungrouped(none, some), fractions=requested, seed=seed))
        for split in Split:
            for name, total in zip(NAMES, (none, some), strict=True):
                assert abs(counts[split][name] - requested[split] * total) < 1 + 1e-9

    @given(none=st.integers(100, 500), some=st.integers(100, 500))
    @settings(max_examples=40, deadline=None)
    def test_60_15_15_10_is_met_within_one_percent(self, none, some):
        partition = make(ungrouped(none, some))
        for split in Split:
            assert abs(share(partition, split) - FRACTIONS[split]) < 0.01

    @given(none=st.integers(4, 12), some=st.integers(4, 12))
    @settings(max_examples=40, deadline=None)
    def test_four_rows_of_a_class_are_enough(self, none, some):
        for counts in count_rows(make(ungrouped(none, some))).values():
            assert min(counts.values()) >= 1

    def test_three_rows_of_a_class_are_not(self):
        with pytest.raises(DataError) as caught:
            make(ungrouped(100, 3))
        assert "class 'Roadwork' is missing from" in caught.value.message
        assert "its 3 rows make 3 groups" in caught.value.message
        assert caught.value.message.endswith("at least 4 are needed")
        assert "smaller groups" not in caught.value.hint

    def test_seeds_differ_and_all_roles_move(self):
        index = ungrouped(300, 100)
        first, second = make(index, seed=1), make(index, seed=2)
        moved = sum(a is not b for a, b in zip(first.roles, second.roles, strict=True))
        # Independent assignments agree on the sum of the squared fractions: 0.415 of the rows.
        assert 0.5 < moved / 400 < 0.67


class TestWithGroups:
    @given(sizes=group_sizes, alone=st.integers(0, 30), requested=fractions(), seed=st.integers(0, 5))
    @settings(max_examples=80, deadline=None)
    def test_groups_stay_whole_and_every_row_has_one_role(self, sizes, alone, requested, seed):
        rows = [*grouped(sizes).rows, *ungrouped(alone, alone).rows]
        try:
            partition = make(index_of(rows), fractions=requested, seed=seed)
        except DataError:
            assume(False)
        assert len(partition.roles) == len(rows)
        splits_of_group = {(row.group, role) for row, role in zip(rows, partition.roles, strict=True) if row.group}
        assert len(splits_of_group) == len({group for group, _ in splits_of_group})

    @given(sizes=group_sizes, seed=st.integers(0, 5), data=st.data())
    @settings(max_examples=40, deadline=None)
    def test_the_order_of_the_rows_does_not_matter(self, sizes, seed, data):
        rows = [*grouped(sizes).rows, *ungrouped(8, 8).rows]
        shuffled = data.draw(st.permutations(rows))
        first, second = (roles_by_path(make(index_of(order), seed=seed)) for order in (rows, shuffled))
        assert first == second

    @given(
        none=st.lists(st.integers(2, 40), min_size=4, max_size=12),
        some=st.lists(st.integers(2, 40), min_size=4, max_size=12),
        requested=fractions(),
    )
    @settings(max_examples=80, deadline=None)
    def test_four_groups_of_a_class_are_enough(self, none, some, requested):
        partition = make(grouped([(count, 0) for count in none] + [(0, count) for count in some]), fractions=requested)
        for counts in count_rows(partition).values():
            assert min(counts.values()) >= 1

    def test_three_groups_and_one_row_alone_are_enough(self):
        index = grouped([(5, 0)] * 8 + [(0, 30), (0, 20), (0, 10)])
        partition = make(index_of([*index.rows, row("alone.png", 1)]))
        assert all(min(counts.values()) >= 1 for counts in count_rows(partition).values())

    def test_three_groups_are_not_enough(self):
        with pytest.raises(DataError, match=r"its 60 rows make 3 groups .* at least 4 are needed"):
            make(grouped([(5, 0)] * 8 + [(0, 30), (0, 20), (0, 10)]))

    def test_a_class_without_rows(self):
        with pytest.raises(DataError, match="'Roadwork' is missing from train, val_select, val_calib, val_test: its 0"):
            make(ungrouped(100, 0))

    @pytest.mark.parametrize("seed", range(5))
    def test_proportions_over_uneven_groups(self, seed):
        draw = random.Random(seed)
        sizes = [int(draw.lognormvariate(2.5, 1)) + 2 for _ in range(120)]
        partition = make(grouped([(0, size) if draw.random() < 0.3 else (size, 0) for size in sizes]), seed=seed)
        counts = count_rows(partition)
        for name in NAMES:
            total = sum(counts[split][name] for split in Split)
            for split in Split:
                assert abs(counts[split][name] / total - FRACTIONS[split]) < 0.01

    @pytest.mark.parametrize("seed", range(5))
    def test_proportions_over_groups_of_both_labels(self, seed):
        draw = random.Random(seed)
        sizes = [(draw.randint(0, 30), draw.randint(0, 10)) for _ in range(80)]
        partition = make(grouped(sizes), seed=seed)
        counts = count_rows(partition)
        for name in NAMES:
            total = sum(counts[split][name] for split in Split)
            for split in Split:
                assert abs(counts[split][name] / total - FRACTIONS[split]) < 0.02

    def test_large_groups_do_not_gather_in_the_smallest_split(self):
        draw = random.Random(0)
        sizes = [int(draw.lognormvariate(2.5, 1)) + 2 for _ in range(400)]
        partition = make(grouped([(0, size) if number % 3 else (size, 0) for number, size in enumerate(sizes)]))
        mean = {
            split: len(partition.rows(split)) / len({row.group for row in partition.rows(split)}) for split in Split
        }
        assert 0.7 < mean[Split.VAL_TEST] / mean[Split.TRAIN] < 1.4

    def test_single_rows_compensate_for_the_groups(self):
        index = index_of([*grouped([(50, 0), (0, 50)]).rows, *ungrouped(450, 450).rows])
        for counts, requested in ((count_rows(make(index))[split], FRACTIONS[split]) for split in Split):
            assert counts == {"None": 500 * requested, "Roadwork": 500 * requested}

    def test_a_group_too_large_for_its_split_leaves_the_others_in_proportion(self):
        partition = make(grouped([(0, 900)] + [(0, 10)] * 10 + [(10, 0)] * 100))
        counts = count_rows(partition)
        assert counts[Split.TRAIN]["Roadwork"] == 900
        assert [counts[split]["Roadwork"] for split in list(Split)[1:]] == [40, 40, 20]


def test_the_partition_is_the_same_on_every_machine():
    """A change here changes the splits of every user."""
    partition = make(ungrouped(20, 20), seed=3)
    assert [row.path for row in partition.rows(Split.VAL_TEST)] == ["5.png", "9.png", "26.png", "37.png"]


def test_a_row_keeps_its_role_under_another_name_and_folder():
    rows = ungrouped(60, 60).rows
    renamed = [replace(row, path=f"/elsewhere/{number}.jpg") for number, row in enumerate(rows)]
    assert make(index_of(renamed)).roles == make(index_of(list(rows))).roles


def test_copies_without_a_group_stay_together():
    rows = ungrouped(60, 60).rows
    copies = [replace(row, path=f"copy of {row.path}") for row in rows]
    partition = make(index_of([*rows, *copies]))
    assert partition.roles[:120] == partition.roles[120:]


def test_groups_that_share_an_image_are_rejected():
    rows = grouped([(5, 5)] * 40).rows
    shared = [replace(row, sha256="0" * 64) if row.path.endswith("/0/0.png") else row for row in rows]
    with pytest.raises(LeakageError, match="photos: image 000000000000 is in"):
        make(index_of(shared))


@pytest.mark.parametrize("requested", [{Split.TRAIN: 1.0}, dict.fromkeys(Split, 0.3)])
def test_invalid_fractions_are_rejected(requested):
    with pytest.raises(ValueError, match="fractions"):
        check_fractions(requested)
    with pytest.raises(ValidationError, match="fractions"):
        DataConfig(fractions=requested)


class TestJson:
    @pytest.fixture
    def value(self) -> dict:
        index = index_of([*grouped([(3, 2)] * 12).rows, *ungrouped(40, 30).rows])
        return json.loads(json.dumps(partition_to_json(make(index, seed=5))))

    @given(sizes=group_sizes, seed=st.integers(0, 3))
    @settings(max_examples=25, deadline=None)
    def test_reading_gives_what_was_written(self, sizes, seed):
        partition = make(index_of([*grouped(sizes).rows, *ungrouped(8, 8).rows]), seed=seed)
        assert partition_from_json(json.loads(json.dumps(partition_to_json(partition))), SOURCE) == partition

    def test_derived_fields(self, value):
        assert value["schema_version"] == 4
        assert value["root"] == "photos"
        assert value["seed"] == 5
        assert value["fractions"] == {"train": 0.6, "val_select": 0.15, "val_calib": 0.15, "val_test": 0.1}
        assert value["counts"]["val_test"] == {"None": 8, "Roadwork": 6}
        assert value["actual_fractions"]["val_test"] == 14 / 130
        assert set(value["rows"][0]) == {*vars(row("a", 0)), "split"}

    @pytest.mark.parametrize(
        ("path", "new", "message"),
        [
            (["schema_version"], 1, "schema_version: Input should be 4"),
            (["seed"], "5", "seed: Input should be a valid integer"),
            (["fractions", "train"], 0.7, "fractions: Value error, fractions must sum to 1, not 1.1"),
            (["fractions", "validation"], 0.0, "fractions.validation"),
            (["rows", 7, "label"], 2, "rows.7.label: Input should be 0 or 1"),
            (["rows", 7, "label"], "1", "rows.7.label: Input should be 0 or 1"),
            (["rows", 7, "sha256"], "abc", "rows.7.sha256: String should match"),
            (["rows", 7, "width"], 0, "rows.7.width: Input should be greater than or equal to 1"),
            (["rows", 7, "split"], "test", "rows.7.split: Input should be 'train', 'val_select'"),
            (["rows", 7, "note"], "x", "rows.7.note: Extra inputs are not permitted"),
            (["rows", 7, "path"], "0/0/0.png", "rows.7.path: '0/0/0.png' occurs twice"),
            (["rows", 100, "source"], "bus", "fingerprint: "),
            (["class_names", 0], "Clear", "fingerprint: "),
            (["counts", "train", "None"], 1, "counts: "),
            (["actual_fractions", "train"], 0.5, "actual_fractions: "),
            (["rows"], [], "rows: "),
        ],
    )
    def test_the_error_names_the_field_of_a_damaged_file(self, value, path, new, message):
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = new
        with pytest.raises(ArtifactError) as caught:
            partition_from_json(value, SOURCE)
        assert caught.value.message.startswith(f"run/splits.json: {message}")

    def test_cross_fit_without_rows_is_an_error(self, value):
        with pytest.raises(ArtifactError):
            partition_from_json(value | {"protocol": "cross_fit", "rows": []}, SOURCE)

    @pytest.mark.parametrize("value", [None, [], "text"])
    def test_content_that_is_not_an_object(self, value):
        with pytest.raises(ArtifactError, match=r"run/splits.json: the content: "):
            partition_from_json(value, SOURCE)

    def test_a_missing_field(self, value):
        del value["rows"][3]["group"]
        with pytest.raises(ArtifactError, match=r"rows\.3.group: Field required"):
            partition_from_json(value, SOURCE)

    def test_a_row_moved_to_another_split(self, value):
        alone = next(entry for entry in value["rows"] if entry["group"] is None and entry["split"] == "val_test")
        alone["split"] = "train"
        with pytest.raises(ArtifactError, match="counts: "):
            partition_from_json(value, SOURCE)

    def test_a_group_in_two_splits(self, value):
        first = value["rows"][0]
        first["split"] = "val_test" if first["split"] == "train" else "train"
        with pytest.raises(LeakageError, match=r"run/splits.json: group 'track 0' is in"):
            partition_from_json(value, SOURCE)

    def test_the_same_image_in_two_splits(self, value):
        alone = [entry for entry in value["rows"] if entry["group"] is None]
        train = next(entry for entry in alone if entry["split"] == "train")
        test = next(entry for entry in alone if entry["split"] == "val_test")
        test["sha256"] = train["sha256"]
        with pytest.raises(LeakageError, match=f"image {train['sha256'][:12]} is in"):
            partition_from_json(value, SOURCE)


@pytest.mark.skipif(not REAL_DATA, reason="STREETVISION_REAL_DATA is not set: no real photographs on this machine")
def test_real_tracks_are_assigned_whole_and_in_proportion():
    names = ("no_roadwork", "roadwork")
    listing = list_images(str(Path(REAL_DATA or "") / "gtsrb_roadwork"), class_names=names, import_to=Path("unused"))
    index = scan_images(listing, class_names=names).index
    partition = make(index)
    for split in Split:
        assert abs(share(partition, split) - FRACTIONS[split]) < 0.01
    assert partition_from_json(partition_to_json(partition), SOURCE) == partition

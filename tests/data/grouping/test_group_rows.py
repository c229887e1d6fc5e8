from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import GroupingConfig
from streetvision.data.grouping.connected_components import components_of_pairs, join_groups
from streetvision.data.grouping.geo import geo_keys
from streetvision.data.grouping.group_rows import group_rows
from streetvision.data.records import ImageListing, ImageRecord
from streetvision.data.scan import scan_images
from streetvision.synthetic.scenes import SceneConfig, draw_scene


def row(name, group=None, content=None):
    return Row(name, 0, f"{content or name:0>64}", 8, 6, 0.5, group)


def names(rows):
    return {entry.path: entry.group for entry in rows}


def test_further_keys_join_groups_and_rows_without_a_group():
    rows = [row("a", "x"), row("b", "y"), row("c"), row("d"), row("e")]
    assert names(join_groups(rows, [1, None, 1, None, None], [None, 7, 7, None, None])) == {
        "a": "x",
        "b": "x",
        "c": "x",
        "d": None,
        "e": None,
    }


def test_a_group_of_similar_rows_is_named_after_the_first_digest():
    rows = [row("a", content="2"), row("b", content="1"), row("c", content="1")]
    assert set(names(join_groups(rows, [5, 5, None])).values()) == {"like 000000000000"}


def test_equal_keys_of_different_lists_are_not_linked():
    assert names(join_groups([row("a"), row("b")], [1, None], [None, 1])) == {"a": None, "b": None}


class TestPlaces:
    BERLIN, NEXT_DOOR, ACROSS_TOWN = ("52.52000", "13.40500"), ("52.52020", "13.40500"), ("52.50000", "13.40500")

    def keys(self, *rows, metres=30.0, hours=None):
        columns = [dict(zip(("latitude", "longitude", "taken"), values, strict=False)) for values in rows]
        located = [replace(row(f"{number}.jpg"), columns=values) for number, values in enumerate(columns)]
        return geo_keys(located, metres=metres, hours=hours)

    def test_neighbors_share_a_key(self):
        missing = [("", ""), ("nan", "0"), ("52", "N/A ")]
        first, neighbor, far, *none = self.keys(self.BERLIN, self.NEXT_DOOR, self.ACROSS_TOWN, *missing)
        assert first == neighbor != far
        assert none == [None] * 3

    def test_the_distance_is_in_metres(self):
        metres = 0.0002 * np.pi / 180 * 6_371_000
        for limit, together in ((metres - 0.1, False), (metres + 0.1, True)):
            first, second = self.keys(self.BERLIN, self.NEXT_DOOR, metres=limit)
            assert (first == second) == together

    def test_the_date_line_separates_nothing(self):
        first, second = self.keys(("0", "179.99999"), ("0", "-179.99999"))
        assert first == second

    def test_hours_separate_photos_taken_at_other_times(self):
        at = [(*self.BERLIN, f"2026-05-01T{hour}:00:00") for hour in ("08", "09", "18")]
        morning, later, evening = self.keys(*at, hours=2)
        assert morning == later != evening
        unknown, known, missing = self.keys(self.BERLIN, at[0], (*self.BERLIN, "NaT"), hours=2)
        assert unknown == known == missing

    @pytest.mark.parametrize("hours", [None, 1.0])
    @pytest.mark.parametrize("metres", [3.0, 10.0])
    def test_many_photos_of_one_place_need_little_memory(self, monkeypatch, metres, hours):
        """The components are those of all pairs, which are found in blocks."""
        rng = np.random.default_rng(0)
        n = 200
        north, east = rng.normal(0, 1e-4, (2, n)).round(6)
        taken = [f"2026-05-01T{hour:02}:{minute:02}:00" for hour, minute in rng.integers(0, (24, 60), (n, 2))]
        rows = [(str(north[i]), str(east[i]), taken[i] if i % 20 else "") for i in range(n)]
        rows += rows[:50]
        minutes = np.array([60.0 * int(t[11:13]) + int(t[14:16]) if t else np.nan for _, _, t in rows])
        position = np.array([[float(a), float(b)] for a, b, _ in rows]) * np.pi / 180 * 6_371_000
        linked = np.linalg.norm(position[:, None] - position, axis=-1) <= metres
        if hours is not None:
            linked &= ~(np.abs(minutes[:, None] - minutes) > 60 * hours)
        expected = components_of_pairs(np.argwhere(linked), len(rows))
        monkeypatch.setattr("streetvision.data.grouping.geo.MAX_PAIRS", 100)
        blocks = []
        monkeypatch.setattr(
            "streetvision.data.grouping.geo.components_of_pairs",
            lambda pairs, count: blocks.append(len(pairs)) or components_of_pairs(pairs, count),
        )
        found = self.keys(*rows, metres=metres, hours=hours)
        assert len(set(zip(found, expected.tolist(), strict=True))) == len(set(found)) == len(set(expected.tolist()))
        assert len(set(found)) > 1
        assert max(blocks) <= max(100, linked.sum(axis=1).max())

    @pytest.mark.parametrize("row", [("north", "1"), ("91", "0"), ("52,5", "0")])
    def test_an_invalid_position(self, row):
        with pytest.raises(DataError, match=r"0\.jpg.* is not a position"):
            self.keys(row)

    def test_an_invalid_time(self):
        with pytest.raises(DataError, match="is not a time"):
            self.keys((*self.BERLIN, "noon"), (*self.BERLIN, ""), hours=1)

    def test_no_position(self):
        with pytest.raises(DataError, match="no row has the columns latitude and longitude"):
            self.keys(("", ""))


class TestConfig:
    @pytest.fixture
    def scan(self, tmp_path):
        config = SceneConfig(width=160, height=120)
        records = []
        for number, group in enumerate(("ride 1", "ride 2", None)):
            picture = Image.fromarray(draw_scene(number, config).image)
            for quality in (95, 60):
                path = f"{number}-{quality}.jpg"
                picture.save(tmp_path / path, quality=quality)
                records.append(ImageRecord(path, number % 2, group if quality == 95 else None))
        return scan_images(ImageListing(Path(tmp_path), tuple(records)), class_names=("a", "b"), with_hashes=True)

    def test_the_default_joins_near_duplicates_to_the_groups_of_the_index(self, scan):
        index, clusters = group_rows(scan.index, scan.hashes, GroupingConfig())
        assert [entry.group for entry in index.rows[:4]] == ["ride 1", "ride 1", "ride 2", "ride 2"]
        assert index.rows[4].group == index.rows[5].group is not None
        assert {frozenset(paths) for paths in clusters.clusters} == {
            frozenset({f"{number}-95.jpg", f"{number}-60.jpg"}) for number in range(3)
        }

    def test_each_kind_of_link_alone(self, scan):
        index, clusters = group_rows(scan.index, scan.hashes, GroupingConfig(by=("column",)))
        assert [entry.group for entry in index.rows] == ["ride 1", None, "ride 2", None, None, None]
        assert clusters is None
        index, _ = group_rows(scan.index, scan.hashes, GroupingConfig(by=("near_duplicates",)))
        assert all(entry.group.startswith("like ") for entry in index.rows)

    @pytest.mark.parametrize("settings", [{"radius": 3, "by": ("column",)}, {"hours": 1.0}, {"metres": 5.0}])
    def test_a_setting_without_effect_is_rejected(self, settings):
        with pytest.raises(ConfigError, match="has no effect"):
            GroupingConfig(**settings)

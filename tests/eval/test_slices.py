import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streetvision.eval.slices import MOST_VALUES, parts_of_column, parts_of_quantity


def told(parts):
    return [(part.value, part.rows.tolist()) for part in parts]


def test_words_come_by_how_often_they_stand_there():
    parts = parts_of_column("weather", ["sun", "rain", "sun", None, "sun", "rain"])
    assert told(parts) == [("sun", [0, 2, 4]), ("rain", [1, 5]), ("not given", [3])]
    assert {part.column for part in parts} == {"weather"}


def test_rare_words_stand_together():
    values = [f"street {number}" for number in range(20) for _ in range(3)] + ["avenue"] * 9
    parts = parts_of_column("street", values)
    assert len(parts) == MOST_VALUES
    assert parts[0].value == "avenue"
    assert parts[-1].value == "10 others"
    assert len(parts[-1].rows) == 30


def test_what_is_the_same_everywhere_or_different_everywhere_is_no_slice():
    assert parts_of_column("camera", ["a"] * 9) == []
    assert parts_of_column("camera", [None] * 9) == []
    assert parts_of_column("file", [f"name {number}" for number in range(50)]) == []


def test_numbers_of_many_values_go_by_thirds():
    values = [str(number / 2) for number in range(30)] + [None]
    assert told(parts_of_column("speed", values)) == [
        ("lowest third: up to 4.5", list(range(10))),
        ("middle third: above 4.5 up to 9.5", list(range(10, 20))),
        ("highest third: above 9.5", list(range(20, 30))),
        ("not given", [30]),
    ]
    assert [part.value for part in parts_of_column("lanes", ["1", "2", "2"])] == ["2", "1"]


def test_equal_values_stay_together():
    parts = parts_of_quantity("size", np.array([1.0] * 8 + [2.0]), unit=" MP", names=("small", "medium", "large"))
    assert told(parts) == [("small: up to 1 MP", list(range(8))), ("large: above 1 MP", [8])]
    assert parts_of_quantity("size", np.ones(5)) == []


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=80))
def test_every_row_is_in_one_part_or_there_is_none(values):
    for parts in (
        parts_of_quantity("q", np.array([np.nan if value is None else value for value in values], dtype=float)),
        parts_of_column("c", [None if value is None else str(round(value)) for value in values]),
    ):
        if parts:
            assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(len(values)))
            assert all(part.rows.size for part in parts)

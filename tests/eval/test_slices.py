import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streetvision.eval.slices import MAX_VALUES, parts_of_column, parts_of_quantity


def values_and_rows(parts):
    return [(part.value, part.rows.tolist()) for part in parts]


def test_values_are_in_order_of_frequency():
    parts = parts_of_column("weather", ["sun", "rain", "sun", None, "sun", "rain"])
    assert values_and_rows(parts) == [("sun", [0, 2, 4]), ("rain", [1, 5]), ("not given", [3])]
    assert {part.column for part in parts} == {"weather"}


def test_rare_values_share_a_slice():
    values = [f"street {number}" for number in range(20) for _ in range(3)] + ["avenue"] * 9
    parts = parts_of_column("street", values)
    assert len(parts) == MAX_VALUES
    assert parts[0].value == "avenue"
    assert parts[-1].value == "10 others"
    assert len(parts[-1].rows) == 30


def test_constant_columns_and_identifiers_give_no_slice():
    assert parts_of_column("camera", ["a"] * 9) == []
    assert parts_of_column("camera", [None] * 9) == []
    assert parts_of_column("file", [f"name {number}" for number in range(50)]) == []


def test_columns_of_many_numbers_are_split_by_thirds():
    values = [str(number / 2) for number in range(30)] + [None]
    assert values_and_rows(parts_of_column("speed", values)) == [
        ("lowest third: up to 4.5", list(range(10))),
        ("middle third: above 4.5 up to 9.5", list(range(10, 20))),
        ("highest third: above 9.5", list(range(20, 30))),
        ("not given", [30]),
    ]
    assert [part.value for part in parts_of_column("lanes", ["1", "2", "2"])] == ["2", "1"]


def test_numbers_from_1000_on_have_all_digits():
    values = np.array([1080.0] * 3 + [3024.0] * 3 + [123456.0] * 3)
    texts = " ".join(part.value for part in parts_of_quantity("shorter side", values, unit=" px"))
    assert texts.count("1080 px") == 1
    assert "above 1080 up to 3024 px" in texts
    assert "e+" not in texts
    assert "up to 1000" in parts_of_quantity("q", np.array([999.7, 2000.0]))[0].value


def test_equal_values_stay_together():
    parts = parts_of_quantity("size", np.array([1.0] * 8 + [2.0]), unit=" MP", names=("small", "medium", "large"))
    assert values_and_rows(parts) == [("small: up to 1 MP", list(range(8))), ("large: above 1 MP", [8])]
    assert parts_of_quantity("size", np.ones(5)) == []


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=80))
def test_parts_cover_every_row_once(values):
    for parts in (
        parts_of_quantity("q", np.array([np.nan if value is None else value for value in values], dtype=float)),
        parts_of_column("c", [None if value is None else str(round(value)) for value in values]),
    ):
        if parts:
            assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(len(values)))
            assert all(part.rows.size for part in parts)

import pytest
from yaml import safe_dump

from streetvision.contracts.errors import ConfigError
from streetvision.experiments.ablation_table import AblationTable
from streetvision.experiments.tables import packaged_tables, read_table

PAIR = {"name": "loss", "variant": {"settings": ["training.loss.name=focal"]}}
TABLE = {"title": "t", "seeds": [0], "data": {"scenes": []}, "pairs": [PAIR]}


@pytest.mark.parametrize("name", packaged_tables())
def test_every_packaged_table_is_read(name):
    assert read_table(name).title


def test_the_specifications_gains_are_in_its_tables():
    expected = [pair.expected for name in ("specification", "backbone") for pair in read_table(name).pairs]
    for claim in ({"mcc": "+6 to 8 %"}, {"mcc": "+8 to 12 %"}, {"ece": "below 0.02"}, {"cost": "a third"}):
        assert claim in expected


def test_a_table_may_be_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(safe_dump(TABLE))
    assert read_table(str(file)) == AblationTable.model_validate(TABLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [PAIR, PAIR]}, "pair 'loss' occurs twice"),
        ({"seeds": [1, 1]}, "seed 1 occurs twice"),
        ({"pairs": [{"name": "loss"}]}, "pair 'loss' are the same"),
        ({"pairs": [{**PAIR, "data": ["scene"]}]}, "did you mean 'scenes'"),
        ({"pairs": [{**PAIR, "expect": {}}]}, "Extra inputs"),
        ({"pairs": []}, "at least 1 item"),
    ],
)
def test_an_invalid_table_is_rejected(tmp_path, change, message):
    file = tmp_path / "mine.yaml"
    file.write_text(safe_dump(TABLE | change))
    with pytest.raises(ConfigError, match=message):
        read_table(str(file))


def test_no_table_of_that_name_and_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="'specfication'; did you mean 'specification'"):
        read_table("specfication")
    with pytest.raises(ConfigError, match="cannot read"):
        read_table(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_table(str(tmp_path / "bad.yaml"))


def test_some_pairs_alone_in_the_order_asked_for():
    table = read_table("smoke")
    assert [pair.name for pair in table.only(("calibrator", "threshold", "calibrator")).pairs] == [
        "calibrator",
        "threshold",
    ]
    with pytest.raises(ConfigError, match="no pair 'loss'"):
        table.only(("loss",))


def test_some_data_sets_alone_and_the_pairs_that_are_compared_on_them():
    table = read_table("stages").only(data=("small_roadwork",), seeds=(7,))
    assert list(table.data) == ["small_roadwork"]
    assert table.seeds == (7,)
    assert {name for _, name in table.comparisons} == {"small_roadwork"}
    assert "all phases" not in [pair.name for pair in table.pairs]
    with pytest.raises(ConfigError, match="did you mean 'scenes'"):
        read_table("stages").only(data=("scene",))
    with pytest.raises(ConfigError, match="no pair is compared"):
        read_table("stages").only(("all phases",), ("small_roadwork",))

import pytest

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.config import DataConfig
from streetvision.data.grouping.name_pattern import apply_patterns, groups_by_name, suggest_pattern
from streetvision.data.records import ImageListing, ImageRecord


def test_the_group_is_the_first_parentheses_or_the_whole_match():
    names = ["Roadwork/ride3_0042.jpg", "None/ride3_0043.jpg", "None/other.jpg"]
    assert groups_by_name(names, r"(ride\d+)_") == ["ride3", "ride3", None]
    assert groups_by_name(names, r"ride\d+") == ["ride3", "ride3", None]


def test_the_group_of_the_index_has_precedence(tmp_path):
    images = (ImageRecord("a_1.jpg", 0), ImageRecord("a_2.jpg", 1, "index"))
    listing = apply_patterns(ImageListing(tmp_path, images), DataConfig(group_pattern="(a)_"))
    assert [image.group for image in listing.images] == ["a", "index"]
    with pytest.raises(DataError, match="matches no name"):
        apply_patterns(ImageListing(tmp_path, images), DataConfig(group_pattern="ride"))


@pytest.mark.parametrize(
    ("name", "n_groups"),
    [
        ("Roadwork/ride{ride}_{frame:04d}.jpg", 8),
        ("None/{number}_DF_0{ride}_BDF_{frame:05d}.png", 8),
        ("IMG{ride}x{frame:05d}.JPG", 8),
        ("2026-05-0{ride}_clip{number}x.jpg", 8),
        ("ride {ride}/photo-{number}.jpg", 8),
    ],
)
def test_names_that_run_in_sequences_suggest_a_pattern(name, n_groups):
    names = [
        name.format(ride=ride, frame=37 * ride + frame, number=7919 * (ride * 10 + frame))
        for ride in range(1, 9)
        for frame in range(10)
    ]
    pattern, found = suggest_pattern(names)
    assert found == n_groups
    assert len(set(groups_by_name(names, pattern))) == n_groups


@pytest.mark.parametrize("name", ["None/{:04d}.jpg", "Roadwork/photo_{:03d}.jpg", "{:x}.png"])
def test_names_without_rides_suggest_nothing(name):
    assert suggest_pattern([name.format(number * 7919) for number in range(100)]) is None
    assert suggest_pattern([]) is None


def test_a_source_is_found_in_the_source_of_the_index_or_in_the_path(tmp_path):
    named = ImageRecord("2.jpg", 1, source="set|road=BR 020|n=3")
    images = (ImageRecord("cam1/1.jpg", 0), named, ImageRecord("3.jpg", 0))
    listing = apply_patterns(ImageListing(tmp_path, images), DataConfig(source_pattern=r"(cam\d|road=[^|]+)"))
    assert [image.source for image in listing.images] == ["cam1", "road=BR 020", None]
    with pytest.raises(DataError, match="source_pattern 'ride' matches no name"):
        apply_patterns(ImageListing(tmp_path, images), DataConfig(source_pattern="ride"))


def test_an_invalid_or_unused_pattern_is_refused():
    with pytest.raises(ValueError, match="not a regular expression"):
        DataConfig(group_pattern="(")
    with pytest.raises(ValueError, match="source_pattern is not a regular expression"):
        DataConfig(source_pattern="(")
    with pytest.raises(ConfigError, match="has no effect"):
        DataConfig(group_pattern="a", grouping={"by": ["near_duplicates"]})

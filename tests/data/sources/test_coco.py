"""Images with annotated objects, in the format of COCO."""

import copy
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.data.config import CocoConfig
from streetvision.data.sources.coco import list_coco
from streetvision.data.sources.csv_json import ColumnNames
from streetvision.data.sources.discovery import list_images

NAMES = ("None", "Roadwork")
CONTENT = {
    "categories": [{"id": 1, "name": "Cone"}, {"id": 2, "name": "Police Officer"}],
    "images": [
        {"id": 10, "file_name": "pgh01_0001.jpg", "width": 100, "height": 100, "weather": "rain", "group": "a"},
        {"id": 11, "file_name": "pgh01_0002.jpg", "width": 100, "height": 100},
        {"id": 12, "file_name": "boston_1_2_0003.jpg", "width": 100, "height": 100, "tags": {"x": 1}},
        {"id": 13, "file_name": "boston_1_2_0004.jpg", "width": 100, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 1, "area": 40},
        {"id": 2, "image_id": 10, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"id": 3, "image_id": 11, "category_id": 2, "area": 5000},
        {"id": 4, "image_id": 12, "category_id": 1, "area": 1.5},
    ],
}


def write(folder, content=CONTENT):
    (folder / "scene" / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "scene" / "images").mkdir(exist_ok=True)
    path = folder / "scene" / "annotations" / "instances.json"
    path.write_text(json.dumps(content))
    return path


def listed(path, one_class=False, **coco):
    return list_images(
        str(path), class_names=NAMES, import_to=Path("unused"), coco=CocoConfig(**coco), one_class=one_class
    )


def labels_of(listing):
    return {Path(image.path).name: image.label for image in listing.images}


def test_objects_of_the_categories_decide_the_label(tmp_path):
    path = write(tmp_path)
    listing = listed(path)
    assert listing.root == tmp_path / "scene" / "images"
    assert list(labels_of(listing).values()) == [1, 1, 1, 0]
    assert (listing.images[0].group, listing.images[0].columns) == ("a", {"weather": "rain"})
    assert list(labels_of(listed(path, categories=("cone",))).values()) == [1, 0, 1, 0]


def test_any_field_of_an_image_may_be_its_group(tmp_path):
    content = copy.deepcopy(CONTENT)
    for number, image in enumerate(content["images"]):
        image["date_captured"] = f"2026-05-0{number // 2 + 1}"
    listing = list_images(
        str(write(tmp_path, content)), class_names=NAMES, import_to=Path("unused"), group_column="date_captured"
    )
    assert [image.group for image in listing.images] == ["2026-05-01"] * 2 + ["2026-05-02"] * 2
    assert listing.images[0].columns == {"weather": "rain", "group": "a"}


def test_small_objects_are_left_out_and_named(tmp_path):
    listing = listed(write(tmp_path), categories=("Cone",), min_area=0.01)
    assert labels_of(listing) == {"pgh01_0001.jpg": 1, "pgh01_0002.jpg": 0, "boston_1_2_0004.jpg": 0}
    assert [file.path for file in listing.skipped] == ["boston_1_2_0003.jpg"]
    assert "data.coco.min_area" in listing.skipped[0].reason


def test_further_negatives_come_from_a_folder(tmp_path):
    content = copy.deepcopy(CONTENT)
    del content["images"][3]
    path = write(tmp_path, content)
    with pytest.raises(DataError) as raised:
        listed(path)
    assert "data.coco.negatives" in raised.value.hint
    (tmp_path / "empty_streets" / "night").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "empty_streets" / "night" / "1.jpg")
    (tmp_path / "empty_streets" / "notes.txt").write_text("x")
    listing = listed(path, negatives=tmp_path / "empty_streets")
    assert labels_of(listing)["1.jpg"] == 0
    assert (listing.root / listing.images[-1].path).is_file()
    assert [Path(file.path).name for file in listing.skipped] == ["notes.txt"]
    assert len(listed(path, one_class=True).images) == 3
    with pytest.raises(DataError, match="is not a folder"):
        listed(path, negatives=tmp_path / "nowhere")


def test_the_folder_of_the_images_may_be_set(tmp_path):
    path = write(tmp_path)
    assert listed(path, images=tmp_path).root == tmp_path
    with pytest.raises(DataError, match="is not a folder"):
        listed(path, images=tmp_path / "nowhere")
    (tmp_path / "scene" / "images").rmdir()
    assert listed(path).root == path.parent


@pytest.mark.parametrize("place", ["scene/annotations", "scene"])
@pytest.mark.parametrize("prefix", ["", "images/", "./images/"])
def test_the_folder_of_the_images_has_the_listed_files(tmp_path, prefix, place):
    content = copy.deepcopy(CONTENT)
    path = write(tmp_path, content)
    for image in content["images"][1:]:
        (tmp_path / "scene" / "images" / image["file_name"]).touch()
        image["file_name"] = prefix + image["file_name"]
    path = tmp_path / place / "result.json"
    path.write_text(json.dumps(content))
    (path.parent / "images").mkdir(exist_ok=True)
    listing = listed(path)
    assert [(listing.root / image.path).is_file() for image in listing.images] == [False, True, True, True]


def test_an_unknown_category_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'Cone'"):
        listed(write(tmp_path), categories=("Cones",))


def test_settings_of_coco_without_a_file_of_coco_are_refused(tmp_path):
    for label in NAMES:
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / label / "1.png")
    with pytest.raises(DataError, match="not a JSON file of COCO"):
        listed(tmp_path, min_area=0.1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("categories",), None, "'categories' is not a list"),
        (("categories", 0, "name"), 3, "category 1: 'name'"),
        (("categories", 0, "id"), True, "category 1: 'id'"),
        (("images",), [1], "'images' is not a list of objects"),
        (("images", 1, "file_name"), "", "image 2: 'file_name'"),
        (("images", 1, "file_name"), "pgh01_0001.jpg", "already listed"),
        (("images", 1, "id"), 10, "already listed"),
        (("images", 0, "width"), "100", "'width' is '100'"),
        (("images", 0, "height"), 0, "'height' is 0"),
        (("images", 0, "height"), 2**40, "not a size"),
        (("annotations", 2, "image_id"), 99, "annotation 3: image_id 99"),
        (("annotations", 2, "category_id"), [1], "annotation 3: 'category_id'"),
        (("annotations", 2, "category_id"), 3, "annotation 3: category_id 3"),
        (("annotations", 0, "area"), -1, "annotation 1: 'area'"),
        (("annotations", 0, "area"), "40", "annotation 1: 'area'"),
        pytest.param(("annotations", 0, "area"), 10**400, "annotation 1: 'area'", id="huge area"),
        (("annotations", 1, "bbox"), [0, 0, 10], "annotation 2: 'area'"),
    ],
)
def test_an_invalid_entry_is_named(tmp_path, place, value, message):
    content = copy.deepcopy(CONTENT)
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(DataError) as raised:
        listed(write(tmp_path, content), min_area=0.001)
    assert message in raised.value.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["images", "annotations", "categories"]), st.integers(0, 2), st.text(max_size=3), VALUES)
def test_any_value_is_read_or_refused(field, number, name, value):
    """No other error, whatever an entry holds."""
    for key in (name, "id", "file_name", "width", "area", "bbox", "category_id", "image_id", "name"):
        content = copy.deepcopy(CONTENT)
        content[field][min(number, len(content[field]) - 1)][key] = value
        try:
            listing = list_coco(
                Path("set") / "a.json", content, CocoConfig(min_area=0.001), class_names=NAMES, columns=ColumnNames()
            )
        except DataError:
            continue
        assert all(image.label in (0, 1) for image in listing.images)
        assert not any(math.isnan(image.label) for image in listing.images)

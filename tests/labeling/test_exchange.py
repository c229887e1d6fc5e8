"""Label Studio and CVAT: files in their published form are read, and ours are read back."""

import json
import time

import pytest

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.labels.decisions import LabeledImage
from streetvision.data.labels.listing import read_labels
from streetvision.data.labels.store import read_events
from streetvision.labeling.exchange import (
    READERS,
    WRITERS,
    ForeignLabel,
    exchange_format,
    match_names,
    read_cvat,
    read_label_studio,
)
from tests.labeling.conftest import photo

NAMES = ("None", "Roadwork")
IMAGES = [
    LabeledImage("a" * 64, "/photos/north/1.jpg", 1, None, "random"),
    LabeledImage("b" * 64, "/photos/south/1.jpg", 0, "ride 1", "uncertain"),
]
LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/upload/3/9d2f0c1a-street_1.jpg"},
        "annotations": [
            {
                "id": 1001,
                "result": [
                    {
                        "from_name": "choice",
                        "id": "t5sp3TyXPo",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": ["Roadwork"]},
                    }
                ],
                "was_cancelled": False,
                "ground_truth": False,
                "completed_by": {"id": 7, "email": "ann@example.org"},
                "lead_time": 4.2,
            },
            {"id": 1002, "result": [], "was_cancelled": True, "completed_by": 8},
        ],
        "predictions": [],
    },
    {"id": 2, "data": {"image": "s3://bucket/photos/b.jpg"}, "annotations": []},
]
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>3</id><name>streets</name><size>2</size><mode>annotation</mode>
      <labels>
        <label><name>Roadwork</name><color>#fa3253</color><type>tag</type><attributes></attributes></label>
        <label><name>None</name><color>#33ddff</color><type>tag</type><attributes></attributes></label>
      </labels>
    </task>
    <dumped>2026-01-01 00:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="north/1.jpg" width="640" height="480"><tag label="Roadwork" source="manual"></tag></image>
  <image id="1" name="north/2.jpg" width="640" height="480">
    <box label="Roadwork" source="manual" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
  </image>
</annotations>
"""


@pytest.mark.parametrize("suffix", [".json", ".xml"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    WRITERS[suffix](path, IMAGES, NAMES)
    found = READERS[suffix](path, NAMES)
    assert [label.label for label in found] == [1, 0]
    matched = match_names([label.name for label in found], [image.path for image in IMAGES])
    assert [matched[label.name] for label in found] == [image.path for image in IMAGES]


@pytest.mark.parametrize("suffix", [".json", ".xml"])
def test_paths_with_special_characters_are_read_back(tmp_path, suffix):
    names = ["a+b.jpg", "a&b.jpg", "a#1.jpg", "a?d=1.jpg", "50%25.jpg", "ä b;c.jpg", "<a>'b\".jpg"]
    images = [LabeledImage(f"{number:064x}", f"/photos/{name}", 1, None, "random") for number, name in enumerate(names)]
    path = tmp_path / f"labels{suffix}"
    WRITERS[suffix](path, images, NAMES)
    assert [label.name for label in READERS[suffix](path, NAMES)] == [f"photos/{name}" for name in names]


@pytest.mark.parametrize(
    "data",
    [
        {"version": "v2.1", "time": "2023-01-01T00:00:00.123Z", "image": "https://host/photos/1.jpg?token=2"},
        {"version": "v2.1", "time": "2023-01-01T00:00:00.123Z", "photo": "s3://bucket/photos/1.JPG"},
        {"photo": "/data/local-files/?d=photos/1.jpg"},
        {"thumbnail": "small.jpg", "image": "photos/1"},
    ],
)
def test_the_image_of_a_task_is_its_field_image_or_the_first_image_file(tmp_path, data):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([{"data": data, "annotations": LABEL_STUDIO[0]["annotations"]}]))
    (found,) = read_label_studio(path, NAMES)
    assert found.name.lower().lstrip("/") in {"photos/1.jpg", "photos/1"}


def test_an_export_of_label_studio_is_read(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(LABEL_STUDIO))
    (found,) = read_label_studio(path, NAMES)
    assert (found.label, found.labeler) == (1, "ann@example.org")
    assert match_names([found.name], ["/photos/street_1.jpg", "/photos/x.jpg"]) == {found.name: "/photos/street_1.jpg"}
    path.write_text(json.dumps([{"image": "/data/local-files/?d=photos/1.jpg", "id": 1, "choice": "None"}]))
    (found,) = read_label_studio(path, NAMES)
    assert (found.name, found.label) == ("photos/1.jpg", 0)


def test_tags_of_cvat_are_read_and_boxes_are_not(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT)
    assert [(label.name, label.label) for label in read_cvat(path, NAMES)] == [("north/1.jpg", 1)]


def test_a_name_that_fits_two_images_matches_none():
    assert match_names(["1.jpg", "south/1.jpg"], [image.path for image in IMAGES]) == {
        "south/1.jpg": "/photos/south/1.jpg"
    }


@pytest.mark.parametrize(
    ("names", "paths", "matched"),
    [
        (
            ["front-001.jpg", "rideA/frame_0001.jpg", "rideB/frame_0001.jpg"],
            ["/d/001.jpg", "/d/rideB/frame_0001.jpg"],
            {"rideB/frame_0001.jpg": "/d/rideB/frame_0001.jpg"},
        ),
        (["rideA/1.jpg", "rideB/1.jpg"], ["/d/1.jpg"], {}),
        (["9d2f0c1a-1.jpg", "1.jpg"], ["/d/1.jpg"], {"1.jpg": "/d/1.jpg"}),
        (["x-9d2f0c1a-1.jpg"], ["/d/x-1.jpg", "/d/1.jpg"], {}),
        (["1.jpg", "1.jpg"], ["/d/1.jpg"], {"1.jpg": "/d/1.jpg"}),
    ],
)
def test_an_image_has_the_name_that_fits_it_best(names, paths, matched):
    assert match_names(names, paths) == matched


def test_the_work_of_equal_file_names_grows_linearly():
    names = [f"{ride}/front.jpg" for ride in range(2000)]
    started = time.process_time()
    assert match_names(names, [f"/d/{name}" for name in names]) == {name: f"/d/{name}" for name in names}
    assert time.process_time() - started < 2


def cvat(*images):
    tags = "".join(
        f'<image id="{number}" name="{name}">' + "".join(f'<tag label="{label}"/>' for label in labels) + "</image>"
        for number, (name, *labels) in enumerate(images)
    )
    return f"<annotations>{tags}</annotations>"


@pytest.fixture
def import_cvat(command, tmp_path):
    """Import labels of three photographs; returns the exit code, what is stored as (file, class), and the messages."""
    for number, name in enumerate(("pool/rideB/1.jpg", "pool/2.jpg", "pool/3.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / name, number)

    def run(*images, options=("--labeler", "ann")):
        path, labels = tmp_path / "annotations.xml", tmp_path / "labels.parquet"
        path.write_text(cvat(*images))
        settings = ("--images", tmp_path / "pool", "--import", path, f"data.labels={labels}", *options)
        code, out, err = command("label", *settings)
        events = read_events(labels, NAMES) if labels.exists() else ()
        return code, [(event.path.rpartition("/")[2], event.label) for event in events], out + err

    return run


def test_a_label_is_stored_for_the_image_with_its_name_only(import_cvat):
    code, stored, text = import_cvat(
        ("rideA/1.jpg", "None"), ("rideB/1.jpg", "Roadwork"), ("front-2.jpg", "Roadwork"), ("3.jpg", "None")
    )
    assert code == 0
    assert sorted(stored) == [("1.jpg", 1), ("3.jpg", 0)]
    assert "rideA/1.jpg" in text
    assert "front-2.jpg" in text


def test_a_pattern_gives_the_imported_images_their_groups(import_cvat, tmp_path):
    pattern = "data.group_pattern=^([^/]+)/"
    import_cvat(("rideB/1.jpg", "Roadwork"), ("3.jpg", "None"), options=("--labeler", "ann", pattern))
    events = read_events(tmp_path / "labels.parquet", NAMES)
    assert {event.path.rpartition("/")[2]: event.group for event in events} == {"1.jpg": "rideB", "3.jpg": None}
    assert import_cvat(("2.jpg", "None"), options=("--labeler", "ann", "data.group_pattern=tram"))[0] == 2


def test_files_that_are_left_out_are_named(import_cvat, tmp_path):
    import_cvat()
    (tmp_path / "pool" / "4.heic").write_bytes(b"")
    assert "4.heic" in import_cvat(("2.jpg", "None"))[2]


def test_a_label_that_changed_back_is_stored_again(import_cvat):
    for label in ("None", "Roadwork", "Roadwork", "None", "None"):
        stored = import_cvat(("2.jpg", label))[1]
    assert [label for _, label in stored] == [0, 1, 0]


def test_a_repeated_import_can_state_that_the_images_were_drawn_at_random(import_cvat, tmp_path):
    images, at_random = (("2.jpg", "None"), ("3.jpg", "Roadwork")), ("--labeler", "ann", "--queue", "random")
    counts, queues = [], []
    for options in (("--labeler", "ann"), ("--labeler", "ann"), at_random, at_random, ("--labeler", "ann")):
        code, stored, text = import_cvat(*images, options=options)
        assert code == 0
        counts.append((len(stored), "2 already there" in text))
        queues.append({image.queue for image in read_labels(tmp_path / "labels.parquet", NAMES).images.values()})
    assert counts == [(2, False), (2, True), (4, False), (4, True), (4, True)]
    assert queues == [{"imported"}] * 2 + [{"random"}] * 3


def test_both_classes_of_one_person_for_an_image_are_refused(import_cvat):
    code, stored, text = import_cvat(("2.jpg", "None", "Roadwork"), ("3.jpg", "None"))
    assert (code, stored) == (2, [])
    assert "2.jpg" in text
    assert import_cvat(("2.jpg", "None", "None"))[:2] == (0, [("2.jpg", 0), ("2.jpg", 0)])


def test_the_work_of_an_import_grows_linearly(import_cvat, monkeypatch):
    compared, compare = [], ForeignLabel.__eq__

    def counted(one, other):
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(ForeignLabel, "__eq__", counted)
    for _ in range(2):  # the second import adds nothing
        code, stored, _ = import_cvat(("2.jpg", *["None"] * 200))
        assert (code, len(stored)) == (0, 200)
    assert len(compared) < 2000


@pytest.mark.parametrize("labeler", ["a" * 101, "\udcff"])
def test_a_name_that_cannot_be_stored_is_refused(import_cvat, labeler):
    assert import_cvat(("2.jpg", "None"), options=("--labeler", labeler))[:2] == (2, [])


@pytest.mark.parametrize("error", [KeyError("uid not found: 1234"), OSError("No username set")])
def test_an_account_without_a_name_needs_the_labeler(import_cvat, monkeypatch, error):
    def getuser():
        raise error

    monkeypatch.setattr("getpass.getuser", getuser)
    code, stored, text = import_cvat(("2.jpg", "None"), options=())
    assert (code, stored) == (2, [])
    assert "--labeler" in text


def test_malformed_files_are_rejected(tmp_path):
    path = tmp_path / "annotations.xml"
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations><version>&b;</version></annotations>'
    other_class = CVAT.replace('<tag label="Roadwork"', '<tag label="Cat"')
    encodings = [f'<?xml version="1.0" encoding="{name}"?><annotations/>' for name in ("foo", "shift_jis")]
    for text in ("", "<annotations>", "<task/>", bomb, other_class, *encodings):
        path.write_text(text)
        with pytest.raises(DataError):
            read_cvat(path, NAMES)
    path = tmp_path / "export.json"
    for value in (
        {},
        [1],
        [{"data": {}}],
        [{"image": "http://[x/a.jpg", "choice": "None"}],
        [{"photo": "http://[x/a.jpg", "choice": "None"}],
        [{"data": {"image": "a.jpg"}, "annotations": [{}]}],
        [{"image": "a.jpg", "choice": "Cat"}],
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(DataError):
            read_label_studio(path, NAMES)
    with pytest.raises(ConfigError):
        exchange_format(tmp_path / "labels.csv")

"""The data phase through the command line: images keep their split when others are added."""

import json
import shutil

import datasets
import pytest
from PIL import Image

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.io.atomic import read_json
from streetvision.pipeline import moved_data


@pytest.fixture
def photos(scenes, tmp_path):
    """A data set of 60 scenes, and the index rows of 60 more."""
    folder = shutil.copytree(scenes, tmp_path / "photos")
    header, *rows = (folder / "index.csv").read_text().splitlines()
    (folder / "index.csv").write_text("\n".join([header, *rows[:60]]))
    return folder, rows[60:120]


@pytest.fixture
def split(command, photos, tmp_path):
    def run(*settings):
        schema = ArtifactSchema(tmp_path / "run")
        arguments = [f"data.root={photos[0]}", f"run_dir={schema.output_dir}", "pipeline.phases=[data]"]
        code, out, err = command("train", *arguments, *settings)
        assert code == 0, err
        return {row["path"]: row["split"] for row in read_json(schema.splits_json)["rows"]}, out + err

    return run


def add(folder, rows):
    with (folder / "index.csv").open("a") as index:
        index.write("\n" + "\n".join(rows))


def test_added_images_do_not_move_existing_images(split, photos):
    folder, rows = photos
    before, _ = split()
    add(folder, rows)
    after, out = split()
    assert len(after) == 120
    assert before.items() <= after.items()
    assert "0 across splits" in out
    assert split("data.seed=1")[0] != after


@pytest.mark.parametrize("protocol", ["split", "cross_fit"])
@pytest.mark.parametrize("names", [("free", "blocked"), ("blocked", "free")])
def test_images_keep_their_split_when_the_classes_get_other_names(split, photos, tmp_path, protocol, names):
    folder, added = photos
    header, *rows = (folder / "index.csv").read_text().splitlines()
    path, label = (header.split(",").index(name) for name in ("path", "label"))

    def write(rows):
        named = [row.split(",") for row in rows]
        for row in named:
            row[label] = ("free", "blocked")[int(row[label])]
        (folder / "index.csv").write_text("\n".join([header, *map(",".join, named)]))
        return {row[path]: names.index(row[label]) for row in named}

    def places():
        return {row["path"]: (row["split"], row.get("fold")) for row in read_json(tmp_path / "run/splits.json")["rows"]}

    split(f"data.protocol={protocol}")
    before = places()
    labels = write([*rows, *added])
    split(f"data.protocol={protocol}", f"data.class_names=[{','.join(names)}]")
    assert len(places()) == 120
    assert before.items() <= places().items()
    assert {row["path"]: row["label"] for row in read_json(tmp_path / "run/splits.json")["rows"]} == labels


def test_a_test_split_that_lost_a_class_is_refused(command, split, photos, tmp_path):
    folder, _ = photos
    before, _ = split()
    header, *rows = (folder / "index.csv").read_text().splitlines()
    path, label = (header.split(",").index(name) for name in ("path", "label"))
    relabeled = [row.split(",") for row in rows]
    for row in relabeled:
        if before[row[path]] == "val_test":
            row[label] = "0"
    (folder / "index.csv").write_text("\n".join([header, *map(",".join, relabeled)]))
    code, _, err = command("train", f"data.root={folder}", f"run_dir={tmp_path / 'run'}", "pipeline.phases=[data]")
    assert code == 2
    assert "val_test" in err.lower()


def test_a_pattern_of_names_decides_which_images_share_a_group(split, photos, tmp_path):
    folder, _ = photos
    header, *rows = (folder / "index.csv").read_text().splitlines()
    columns = [header.split(",").index(name) for name in ("path", "label")]
    lines = [",".join(row.split(",")[column] for column in columns) for row in rows]
    (folder / "index.csv").write_text("\n".join(["path,label", *lines]))
    split(r"data.group_pattern=(\d)\.jpg", "data.grouping.by=[column]")
    groups = {row["path"]: row["group"] for row in read_json(tmp_path / "run" / "splits.json")["rows"]}
    by_last_digit = {}
    for path, group in groups.items():
        by_last_digit.setdefault(path[-5], set()).add(group)
    assert len(by_last_digit) == 10
    assert all(len(of_digit) == 1 for of_digit in by_last_digit.values())
    assert len(set.union(*by_last_digit.values())) == 10


def test_a_near_duplicate_joins_the_split_of_its_original(split, photos):
    folder, _ = photos
    before, _ = split()
    chosen = next(path for path, role in before.items() if role == "val_test")
    label = next(row.split(",")[1] for row in (folder / "index.csv").read_text().splitlines() if chosen in row)
    Image.open(folder / chosen).resize((120, 90)).save(folder / "copy.jpg", quality=70)
    add(folder, [f"copy.jpg,{label},,"])
    after, _ = split()
    assert after["copy.jpg"] == "val_test"


def test_an_image_linked_to_two_splits_is_excluded_and_reported(split, photos, tmp_path):
    folder, _ = photos
    before, _ = split()
    first, second = (next(path for path, role in before.items() if role == s) for s in ("train", "val_test"))
    group = next(r.split(",")[2] for r in (folder / "index.csv").read_text().splitlines() if first in r)
    Image.open(folder / second).resize((120, 90)).save(folder / "linked.jpg", quality=70)
    label = next(r.split(",")[1] for r in (folder / "index.csv").read_text().splitlines() if second in r)
    add(folder, [f"linked.jpg,{label},{group},"])
    after, out = split()
    assert after == before
    assert "1 new images are related to images of two splits" in out
    bad = read_json(tmp_path / "run" / "data_report.json")["invalid"]
    assert bad == [{"path": "linked.jpg", "reason": "is linked to images of two splits"}]


def test_a_copy_under_the_other_label_is_left_out_with_its_original(split, photos, tmp_path):
    folder, _ = photos
    path, label = next(r.split(",")[:2] for r in (folder / "index.csv").read_text().splitlines()[1:])
    Image.open(folder / path).resize((120, 90)).save(folder / "copy.jpg", quality=80)
    add(folder, [f"copy.jpg,{1 - int(label)},,"])
    after, _ = split()
    assert not {"copy.jpg", path} & after.keys()
    reasons = {file["path"]: file["reason"] for file in read_json(tmp_path / "run" / "data_report.json")["invalid"]}
    assert reasons == {
        path: "is a copy of copy.jpg, which has the other label",
        "copy.jpg": f"is a copy of {path}, which has the other label",
    }


def test_edited_splits_are_replaced_with_a_warning(split, tmp_path):
    before, _ = split()
    splits = tmp_path / "run" / "splits.json"
    splits.write_text(splits.read_text().replace('"seed": 0', '"seed": 7', 1).replace('"label": 1', '"label": 0', 1))
    after, out = split()
    assert after == before
    assert "splits are made again" in out


def test_folders_of_runs_in_the_data_are_recorded_without_a_warning(command, photos, tmp_path):
    folder = tmp_path / "classes"
    for row in (photos[0] / "index.csv").read_text().splitlines()[1:]:
        name, label, *_ = row.split(",")
        target = folder / ("None", "Roadwork")[int(label)]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photos[0] / name, target)
    for number in range(2):
        schema = ArtifactSchema(folder / f"run{number}")
        code, out, err = command(
            "train", f"data.root={folder}", f"run_dir={schema.output_dir}", "pipeline.phases=[data]"
        )
        assert code == 0, err
        assert "left out" not in out + err
        skipped = read_json(schema.data_report_json)["skipped"]
        assert skipped == [{"path": f"run{n}", "reason": "is the folder of a run"} for n in range(number + 1)]
    (folder / "notes.txt").touch()
    code, out, err = command("train", f"data.root={folder}", f"run_dir={folder / 'run2'}", "pipeline.phases=[data]")
    assert "1 other files are left out: notes.txt" in " ".join((out + err).split())


@pytest.mark.parametrize("interrupted", [False, True])
def test_moved_images_of_a_coco_file_are_adopted(command, photos, tmp_path, monkeypatch, interrupted):
    folder, schema = tmp_path / "coco", ArtifactSchema(tmp_path / "run")
    content = {"categories": [{"id": 1, "name": "cone"}], "images": [], "annotations": []}
    (folder / "annotations").mkdir(parents=True)
    for number, row in enumerate((photos[0] / "index.csv").read_text().splitlines()[1:]):
        name, label, *_ = row.split(",")
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photos[0] / name, folder / "images" / name)
        content["images"].append({"id": number, "file_name": name, "width": 8, "height": 8})
        content["annotations"] += [{"image_id": number, "category_id": 1}] * int(label)
    (folder / "annotations" / "all.json").write_text(json.dumps(content))
    arguments = ["train", f"run_dir={schema.output_dir}", "pipeline.phases=[data]"]
    code, _, err = command(*arguments, f"data.root={folder / 'annotations' / 'all.json'}")
    assert code == 0, err
    splits = read_json(schema.splits_json)
    moved = folder.rename(tmp_path / "moved")
    arguments += [f"data.root={moved / 'annotations' / 'all.json'}"]
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(moved_data, "complete_move", lambda schema: (_ for _ in ()).throw(KeyboardInterrupt))
            assert command(*arguments)[0] != 0
        assert read_json(schema.splits_json) == splits
        moved_data.complete_move(schema)
    else:
        code, _, err = command(*arguments)
        assert code == 0, err
    assert read_json(schema.splits_json) == splits | {"root": str(moved / "images")}


def test_a_hugging_face_dataset_cannot_be_moved(command, photos, tmp_path):
    rows = [line.split(",")[:2] for line in (photos[0] / "index.csv").read_text().splitlines()[1:]]
    images = [{"bytes": (photos[0] / path).read_bytes(), "path": path} for path, _ in rows]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": images, "label": [int(label) for _, label in rows]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    schema = ArtifactSchema(tmp_path / "run")
    arguments = ["train", f"run_dir={schema.output_dir}", "pipeline.phases=[data]"]
    code, _, err = command(*arguments, f"data.root={tmp_path / 'set'}")
    assert code == 0, err
    before = schema.splits_json.read_bytes()
    code, _, err = command(*arguments, f"data.root={(tmp_path / 'set').rename(tmp_path / 'moved')}")
    assert code == 2
    assert "Hugging Face" in " ".join(err.split())
    assert schema.splits_json.read_bytes() == before

"""data.labels: old images keep their split, chosen images are in TRAIN only, and random ones may be anywhere."""

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, LeakageError
from streetvision.contracts.split_contracts import Split
from streetvision.data.labels.store import LabelStore, label_event
from streetvision.data.splitting.partition import check_leakage, make_folds
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json

NAMES = ("None", "Roadwork")


@pytest.fixture
def photos(scenes, tmp_path):
    """A data set of 60 scenes, and the paths and labels of 60 more that are not in it."""
    folder = shutil.copytree(scenes, tmp_path / "photos")
    header, *rows = (folder / "index.csv").read_text().splitlines()
    (folder / "index.csv").write_text("\n".join([header, *rows[:60]]))
    fields = [row.split(",") for row in rows]
    return folder, [(folder / path, int(label)) for path, label, *_ in fields[60:120]]


@pytest.fixture
def split(command, tmp_path):
    def run(*settings, code=0):
        schema = ArtifactSchema(tmp_path / "run")
        found, out, err = command("train", f"run_dir={schema.output_dir}", "pipeline.phases=[data]", *settings)
        assert found == code, err
        return (read_json(schema.splits_json)["rows"] if code == 0 else []), out + err

    return run


def store_labels(folder, images, queue, *, groups=None, first=0):
    events = [
        label_event(
            event=f"{first + number:032x}",
            action="label",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            path=str(path),
            label=label,
            labeler="ann",
            time=datetime(2026, 1, 1, tzinfo=UTC),
            queue=queue,
            group=groups[number] if groups else None,
        )
        for number, (path, label) in enumerate(images)
    ]
    store = LabelStore(folder / "labels.parquet", NAMES)
    assert store.append(events) == len(events)
    return store.path


def roles(rows, paths):
    names = {str(path) for path in paths}
    return Counter(row["split"] for row in rows if row["path"] in names)


def test_old_images_keep_their_split_chosen_ones_are_in_train_and_random_ones_anywhere(split, photos, tmp_path):
    folder, pool = photos
    before, _ = split(f"data.root={folder}", "data.protocol=split")
    store_labels(tmp_path, pool[:30], "uncertain")
    labels = store_labels(tmp_path, pool[30:], "random", first=100)
    after, out = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    assert {(row["path"], row["split"]) for row in before} <= {(row["path"], row["split"]) for row in after}
    assert roles(after, [path for path, _ in pool[:30]]) == {"train": 30}
    assert set(roles(after, [path for path, _ in pool[30:]])) >= {"val_select", "val_calib", "val_test"}
    assert "60 labels of data.labels, 30 of them drawn at random" in out


def test_the_labels_alone_are_a_data_set_and_auto_chooses_four_splits(split, photos, tmp_path):
    _, pool = photos
    store_labels(tmp_path, pool[:20], "diverse")
    labels = store_labels(tmp_path, pool[20:], "random", first=100)
    rows, _ = split(f"data.labels={labels.parent}")
    assert len(rows) == 60
    assert all(row["split"] == "train" for row in rows if row["queue"] == "diverse")
    assert {row["split"] for row in rows} == {"train", "val_select", "val_calib", "val_test"}


def test_a_correction_changes_train_but_no_evaluation_split(split, photos, tmp_path):
    folder, _ = photos
    before, _ = split(f"data.root={folder}", "data.protocol=split")
    chosen = {name: next(row for row in before if row["split"] == name) for name in ("train", "val_test")}
    wrong = [(folder / row["path"], 1 - row["label"]) for row in chosen.values()]
    labels = store_labels(tmp_path, wrong, "suspicious")
    after, out = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    label = {row["path"]: row["label"] for row in after}
    assert label[chosen["train"]["path"]] == 1 - chosen["train"]["label"]
    assert label[chosen["val_test"]["path"]] == chosen["val_test"]["label"]
    assert "1 labels of data.labels are not used" in out


def test_a_chosen_image_related_to_an_evaluation_split_is_left_out(split, photos, tmp_path):
    folder, pool = photos
    before, _ = split(f"data.root={folder}", "data.protocol=split")
    group = next(row["group"] for row in before if row["split"] == "val_test")
    labels = store_labels(tmp_path, pool[:1], "uncertain", groups=[group])
    after, out = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    assert len(after) == len(before)
    assert "were chosen for their label" in out


def test_an_image_that_changed_since_it_was_labelled_is_reported(split, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:2], "random")
    shutil.copy(pool[5][0], pool[0][0])
    rows, _ = split(f"data.root={folder}", f"data.labels={labels}")
    assert len(rows) == 61
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["invalid"] == [{"path": str(pool[0][0]), "reason": "has changed since it was labelled"}]


def test_the_contract_rejects_a_chosen_image_outside_train_and_in_folds(split, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:5], "uncertain")
    split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    path = tmp_path / "run" / "splits.json"
    partition = partition_from_json(read_json(path), path)
    position = next(i for i, row in enumerate(partition.index.rows) if row.train_only)
    moved = [*partition.roles]
    moved[position] = Split.VAL_TEST
    with pytest.raises(LeakageError, match="uncertain"):
        check_leakage(replace(partition, roles=tuple(moved)), path)
    with pytest.raises(ConfigError):
        make_folds(partition.index, fractions=partition.fractions, folds=3, seed=0)
    _, out = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=cross_fit", code=2)
    assert "TRAIN only" in out


def test_cross_validation_and_the_check_of_a_data_set_refuse_labels(command, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:5], "uncertain")
    for verb in (["cross-validate", f"data.root={folder}"], ["data", "check", folder]):
        code, _, err = command(*verb, f"data.labels={labels}", f"run_dir={tmp_path / 'cv'}")
        assert code == 2
        assert "data.labels" in err

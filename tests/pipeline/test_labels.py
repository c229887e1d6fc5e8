"""data.labels: old images keep their split, chosen images are in TRAIN only, and random ones may be anywhere."""

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import LeakageError
from streetvision.contracts.split_contracts import NO_FOLD, Split
from streetvision.data.labels.store import LabelStore, label_event
from streetvision.data.splitting.partition import check_leakage
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json
from streetvision.labeling.rounds import read_rounds
from tests.conftest import TINY_MODEL

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


@pytest.mark.parametrize(
    ("protocol", "splits"),
    [("split", {"train", "val_select", "val_calib", "val_test"}), ("auto", {"train", "val_test"})],  # auto: folds
)
def test_the_labels_alone_are_a_data_set(split, photos, tmp_path, protocol, splits):
    _, pool = photos
    store_labels(tmp_path, pool[:20], "diverse")
    labels = store_labels(tmp_path, pool[20:], "random", first=100)
    rows, _ = split(f"data.labels={labels.parent}", f"data.protocol={protocol}")
    assert len(rows) == 60
    assert all(row["split"] == "train" for row in rows if row["queue"] == "diverse")
    assert {row["split"] for row in rows} == splits


def test_labels_of_chosen_images_alone_need_random_ones(split, photos, tmp_path):
    _, pool = photos
    labels = store_labels(tmp_path, pool[:20], "imported")
    assert "--queue random" in split(f"data.labels={labels}", code=2)[1]


@pytest.mark.long
def test_under_cross_fit_chosen_images_are_trained_on_and_have_no_score(split, command, photos, tmp_path):
    folder, pool = photos
    settings = [f"data.root={folder}", "data.protocol=cross_fit", "data.folds=3"]
    before, _ = split(*settings)
    labels = store_labels(tmp_path, pool[:30], "uncertain")
    schema = ArtifactSchema(tmp_path / "run")
    model = [setting for setting in TINY_MODEL if not setting.startswith("data.protocol")]
    fusion = ["pipeline.phases=[phase1,phase2,phase4c_cvfm,phase5,phase6]", "phase4c.views.rows=1", "phase4c.gate=off"]
    tuning = ["training=full", "training.epochs=1", "training.batch_size=16", "training.gate=off"]
    command_line = ["train", f"run_dir={schema.output_dir}", *settings, f"data.labels={labels}", *model]
    code, out, err = command(*command_line, *fusion, *tuning, "phase4c.views.columns=2")
    assert code in (0, 3), err
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    assert {row.path: fold for row, fold in zip(partition.index.rows, partition.folds, strict=True)}.items() >= {
        (row["path"], row.get("fold", NO_FOLD)) for row in before
    }
    chosen = [row for row in partition.index.rows if row.train_only]
    assert len(chosen) == 30
    assert set(chosen) <= set(partition.rows(Split.TRAIN))
    for record in (schema.val_calib_scores_json, schema.cvfm_scores_json):
        assert (
            read_json(record)["reference"]["n"]
            == len(partition.rows(Split.VAL_CALIB))
            == len(before) - sum(row["split"] == "val_test" for row in before)
        )
    assert "30 that were chosen for their label" in out
    (only_round,) = read_rounds(tmp_path)
    assert (only_round.labels, only_round.evaluated) == (30, len(partition.rows(Split.VAL_CALIB)))


def test_a_confirmed_label_is_still_that_of_the_data_set(split, photos, tmp_path):
    folder, _ = photos
    settings = [f"data.root={folder}", "data.protocol=cross_fit", "data.folds=3"]
    before, _ = split(*settings)
    first, second = [row for row in before if row["split"] == "train"][:2]
    confirmed = (folder / first["path"], first["label"])
    corrected = (folder / second["path"], 1 - second["label"])
    labels = store_labels(tmp_path, [confirmed, corrected], "suspicious")
    after, out = split(*settings, f"data.labels={labels}")
    queue = {row["path"]: row["queue"] for row in after}
    assert queue[first["path"]] is None
    assert queue[second["path"]] == "suspicious"
    assert "2 labels of data.labels" in out


def test_an_image_in_the_data_set_and_in_the_pool_is_one_label(split, photos, tmp_path):
    folder, _ = photos
    before, _ = split(f"data.root={folder}", "data.protocol=split")
    train = [row for row in before if row["split"] == "train"][:5]
    pool = [(tmp_path / f"pool{number}.jpg", row["label"]) for number, row in enumerate(train)]
    for row, (copy, _) in zip(train, pool, strict=True):
        shutil.copy(folder / row["path"], copy)
    labels = store_labels(tmp_path, pool[:3], "uncertain")
    store_labels(tmp_path, pool[3:], "random", first=100)
    rows, out = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    assert len(rows) == len(before)
    assert "0 duplicates" in out
    assert "5 labels of data.labels, 2 of them drawn at random" in out


def test_confirmed_labels_of_a_data_set_that_is_named_otherwise_change_nothing(split, photos, tmp_path):
    folder, _ = photos
    before, _ = split(f"data.root={folder}", "data.protocol=split")
    (tmp_path / "link").symlink_to(folder)
    confirmed = [(tmp_path / "link" / row["path"], row["label"]) for row in before]
    labels = store_labels(tmp_path, confirmed[:30], "suspicious")
    shutil.rmtree(tmp_path / "run")
    after, _ = split(f"data.root={folder}", f"data.labels={labels}", "data.protocol=split")
    assert after == before


def test_the_group_of_a_labeled_image_is_the_recorded_one(split, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:4], "random", groups=["ride1", "ride1", "ride2", None])
    settings = [f"data.root={folder}", f"data.labels={labels}", "data.grouping.by=[column]", "data.source_pattern=."]
    rows, out = split(*settings, "data.group_pattern=([^/]+)/")
    group = {row["path"]: row["group"] for row in rows}
    assert [group[str(path)] for path, _ in pool[:4]] == ["ride1", "ride1", "ride2", None]
    assert "1 images of data.labels have no group" in out


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


def test_an_image_that_changed_since_it_was_labeled_is_reported(split, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:2], "random")
    shutil.copy(pool[5][0], pool[0][0])
    rows, _ = split(f"data.root={folder}", f"data.labels={labels}")
    assert len(rows) == 61
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["invalid"] == [{"path": str(pool[0][0]), "reason": "has changed since it was labelled"}]


def test_labels_of_a_data_set_that_was_moved_are_used(split, photos, tmp_path):
    folder, pool = photos
    before, _ = split(f"data.root={folder}")
    corrected = [(folder / row["path"], 1 - row["label"]) for row in before[:10]]
    labels = store_labels(tmp_path, [*corrected, *pool[:1]], "random")
    for path, _ in pool:
        path.unlink()
    moved = folder.rename(tmp_path / "moved")
    after, _ = split(f"data.root={moved}", f"data.labels={labels}", f"run_dir={tmp_path / 'run'}")
    label = {row["path"]: row["label"] for row in after}
    assert [label[row["path"]] for row in before[:10]] == [label for _, label in corrected]
    report = read_json(tmp_path / "run" / "data_report.json")
    assert [file["path"] for file in report["invalid"]] == [str(pool[0][0])]


def test_the_contract_rejects_a_chosen_image_outside_train(split, photos, tmp_path):
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


def test_cross_validation_and_the_check_of_a_data_set_refuse_labels(command, photos, tmp_path):
    folder, pool = photos
    labels = store_labels(tmp_path, pool[:5], "uncertain")
    for verb in (["cross-validate", f"data.root={folder}"], ["data", "check", folder]):
        code, _, err = command(*verb, f"data.labels={labels}", f"run_dir={tmp_path / 'cv'}")
        assert code == 2
        assert "data.labels" in err

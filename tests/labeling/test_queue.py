"""Queues: the random share is there, reserved groups are only drawn at random, and wrong labels come first."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import datasets
import numpy as np
import pytest

from streetvision.contracts.errors import ArtifactError, DataError
from streetvision.data.labels.store import LabelStore, label_event
from streetvision.labeling.abstained import abstained_images
from streetvision.labeling.queue import Candidate, plan_queue, reserved_units
from streetvision.labeling.strategies import choose_diverse, reduce_features
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.label_images import LabelOptions, read_pool
from tests.labeling.conftest import NAMES, photo


@pytest.fixture
def pool():
    """200 images in 100 groups, of two classes that a line separates; the first 40 have labels, and one is wrong."""
    rng = np.random.default_rng(0)
    truth = np.arange(200) // 2 % 2
    features = rng.normal(size=(200, 8))
    features[:, 0] += 4 * truth
    labels = truth.copy()
    labels[7] = 1 - labels[7]
    candidates = [
        Candidate(f"{i:064x}", f"/{i}.jpg", f"g{i // 2}", label=int(labels[i]) if i < 40 else None) for i in range(200)
    ]
    return candidates, features


def plan(pool, strategy, count=40, seed=0):
    return plan_queue(*pool, strategy=strategy, count=count, seed=seed)


@pytest.mark.parametrize("strategy", ["mixed", "diverse", "uncertain"])
def test_a_tenth_is_drawn_at_random_from_reserved_groups_and_the_rest_from_the_others(pool, strategy):
    queue = plan(pool, strategy)
    reserved = reserved_units(pool[0])
    assert len(queue.images) == len({image.sha256 for image in queue.images}) == 40
    assert {image.queue == "random" for image in queue.images if image.group in reserved} == {True}
    assert {image.queue == "random" for image in queue.images if image.group not in reserved} == {False}
    assert Counter(image.queue == "random" for image in queue.images) == {False: 36, True: 4}
    assert [image.queue == "random" for image in queue.images[:10]].count(True) == 1
    assert all(image.probability is not None and image.model for image in queue.images)


def test_labels_decide_which_groups_stay_reserved(pool):
    candidates, _ = pool
    before = reserved_units(candidates)
    some, other = sorted(before)[0], next(c.group for c in candidates if c.group not in before)
    marked = [
        Candidate(c.sha256, c.path, c.group, 1, queue={some: "uncertain", other: "random"}.get(c.group))
        for c in candidates
    ]
    assert reserved_units(marked) == (before - {some}) | {other}
    assert 0.03 < len(before) / 100 < 0.25


def test_a_random_queue_draws_from_all_groups_until_an_image_was_chosen(pool):
    groups = {image.group for image in plan(pool, "random", count=200).images}
    assert len(groups) == 80
    candidates = [Candidate("f" * 64, "/f.jpg", "other", 1, queue="uncertain"), *pool[0]]
    queue = plan_queue(candidates, None, strategy="random", count=200, seed=0)
    assert {image.group for image in queue.images} <= reserved_units(candidates)
    assert {image.queue for image in queue.images} == {"random"}


def test_without_labels_the_queue_is_diverse_and_there_is_no_model(pool):
    candidates = [Candidate(c.sha256, c.path, c.group) for c in pool[0]]
    queue = plan_queue(candidates, pool[1], strategy="mixed", count=20, seed=0)
    assert Counter(image.queue for image in queue.images) == {"diverse": 18, "random": 2}
    assert queue.worthwhile is None
    assert {image.model for image in queue.images} == {None}


def test_a_wrong_label_is_the_most_suspicious_and_evaluated_images_are_never_chosen(pool):
    candidates, features = pool
    free = [Candidate(c.sha256, c.path, f"x{c.group}", c.label) for c in candidates]
    first = next(
        image
        for image in plan_queue(free, features, strategy="suspicious", count=40, seed=0).images
        if image.queue == "suspicious"
    )
    assert first.path == "/7.jpg"
    protected = [Candidate(c.sha256, c.path, f"x{c.group}", c.label, protected=True) for c in candidates]
    for strategy in ("suspicious", "uncertain", "mixed"):
        queue = plan_queue(protected, features, strategy=strategy, count=40, seed=0)
        assert {image.queue for image in queue.images} <= {"random"}


def test_copies_with_both_labels_and_abstentions_are_shown(pool):
    candidates, features = pool
    reserved = reserved_units(candidates)
    changed = [
        Candidate(c.sha256, c.path, c.group, c.label, abstained=c.label is None, in_conflict=c.path == "/3.jpg")
        for c in candidates
    ]
    queue = plan_queue(changed, None, strategy="abstained", count=10, seed=0)
    assert Counter(image.queue for image in queue.images) == {"abstained": 9, "random": 1}
    suspicious = plan_queue(changed, features, strategy="suspicious", count=10, seed=0).images
    conflict = [image.path for image in suspicious if image.reason == "copies of it have both labels"]
    assert conflict == (["/3.jpg"] if "g1" not in reserved else [])


def test_diverse_images_are_of_different_clusters_and_groups():
    rng = np.random.default_rng(0)
    centers = 50 * np.eye(6)
    features = reduce_features((np.repeat(centers, 30, axis=0) + rng.normal(size=(180, 6))).astype(np.float32))
    chosen = choose_diverse(features, [i // 3 for i in range(180)], 6)
    assert sorted(chosen // 30) == list(range(6))
    rest = choose_diverse(features, [0] * 180, 3, covered=features[:90])
    assert len(set(rest.tolist())) == 3


def test_abstentions_are_read_and_a_name_that_is_not_utf8_is_counted(tmp_path):
    rows = [
        ("a.jpg", 0.9, None),
        ("b.jpg", 0.6, None),
        ("c.jpg", 0.5, 1),
        ("\udcff.jpg", 0.5, None),
        ("d.jpg", 0.5, None),
    ]
    lines = [
        json.dumps({"image": str(tmp_path / name), "probability": probability, "certified": certified})
        for name, probability, certified in rows
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"image": str(tmp_path / "e.jpg"), "error": "\udcff.jpg"})]))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    assert abstained_images(path) == ([tmp_path / "b.jpg", tmp_path / "a.jpg"], 2)
    for line in ("[" * 100_000, '{"image": 1}', "\u00ff", "1"):
        path.write_text(line)
        with pytest.raises(ArtifactError):
            abstained_images(path)


def test_files_that_the_queue_leaves_out_are_named(tmp_path):
    for folder in ("pool", "data/None", "data/Roadwork"):
        (tmp_path / folder).mkdir(parents=True)
        photo(tmp_path / folder / "1.jpg", len(folder))
        (tmp_path / folder / f"{folder[-4:]}.heic").write_bytes(b"")
    store = LabelStore(tmp_path / "labels.parquet", NAMES)
    options = LabelOptions(images=(tmp_path / "pool",), strategy="random")
    with pytest.warns(UserWarning, match="other files") as warned:
        read_pool(compose_config([f"data.root={tmp_path / 'data'}"]), options, store, Console(silent=True))
    text = " ".join(str(warning.message) for warning in warned)
    assert all(name in text for name in ("pool.heic", "None.heic", "work.heic"))


def test_images_that_a_training_with_the_labels_evaluates_are_protected(scenes, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "labels-training").mkdir(parents=True)
    shutil.copy(finished_run / "splits.json", tmp_path / "outputs" / "labels-training")
    store = LabelStore(tmp_path / "outputs" / "labels" / "labels.parquet", NAMES)
    options = LabelOptions(images=(scenes,), strategy="random")
    pool = read_pool(compose_config([]), options, store, Console(silent=True))
    assert 0 < len(pool.protected & {row.sha256 for row in pool.rows}) < len(pool.rows)


@pytest.mark.parametrize("labeled", [True, False])
def test_the_next_command_has_each_setting_once_if_there_are_labels(command, tmp_path, monkeypatch, labeled):
    labels = tmp_path / "mine" / "labels.parquet"
    monkeypatch.setattr("streetvision.serving.launch.run_app", lambda *_: labels.touch() if labeled else None)
    (tmp_path / "pool").mkdir()
    photo(tmp_path / "pool" / "1.jpg", 1)
    settings = [f"data.labels={tmp_path / 'mine'}", "data.seed=3"]
    code, out, err = command(
        "label", "--images", tmp_path / "pool", "--queue", "random", "--labeler", "ann", "--port", 0, *settings
    )
    assert code == 0, err
    commands = [line.split()[-3:] for line in out.splitlines() if "streetvision train" in line]
    assert commands == ([["train", f"data.labels={labels}", "data.seed=3"]] if labeled else [])


@pytest.mark.parametrize("dataset", [False, True])
def test_equal_bytes_with_both_labels_are_one_suspicious_image(tmp_path, dataset):
    root, numbers, labels = tmp_path / "data", [0, 1, 2, 0], [0, 0, 1, 1]
    for path, number, label in zip("abcd", numbers, labels, strict=True):
        folder = root / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        photo(folder / f"{path}.jpg", number)
    if dataset:
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(root.rglob("*.jpg"))]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
        root = tmp_path / "dataset"
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(root))
    options, settings = LabelOptions(strategy="random"), compose_config([f"data.root={root}"])  # without features
    store = LabelStore(tmp_path / "labels.parquet", NAMES)
    pool = read_pool(settings, options, store, Console(silent=True))
    assert len(pool.rows) == 3
    (image,) = pool.plan((), 10, replace(options, strategy="suspicious")).images
    assert (image.sha256, image.reason) == (photo(tmp_path / "0.jpg", 0), "copies of it have both labels")
    event = label_event(
        event="0" * 32,
        action="label",
        sha256=image.sha256,
        path=image.path,
        label=1,
        labeler="ann",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        queue=image.queue,
    )
    store.append([event])
    assert not read_pool(settings, options, store, Console(silent=True)).in_conflict


@pytest.mark.parametrize("pattern", ["^(None|Roadwork)/", r"^(ride\d)_"])
def test_a_pattern_matches_in_the_pool_or_in_the_data_set(tmp_path, pattern):
    for number, path in enumerate(["data/None/1.jpg", "data/Roadwork/1.jpg", "pool/ride1_1.jpg", "pool/ride1_2.jpg"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / path, number)
    store = LabelStore(tmp_path / "labels.parquet", NAMES)
    options = LabelOptions(images=(tmp_path / "pool",), strategy="random")

    def groups(pattern):
        settings = [f"data.root={tmp_path / 'data'}", f"data.group_pattern={pattern}", "data.grouping.by=[column]"]
        rows = read_pool(compose_config(settings), options, store, Console(silent=True)).rows
        return {str(Path(row.path).relative_to(tmp_path)): row.group for row in rows}

    of_data, of_pool = ([None, None], ["ride1", "ride1"]) if "ride" in pattern else (["None", "Roadwork"], [None, None])
    with pytest.warns(UserWarning, match=r"data\.group_pattern"):
        assert list(groups(pattern).values()) == [*of_data, *of_pool]
    with pytest.raises(DataError):
        groups("tram(.)")

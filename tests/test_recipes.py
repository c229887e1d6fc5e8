"""The commands in the heads of the examples for public data sets, on small trees of the same form."""

import io
import json
import re
import shlex
from pathlib import Path

import datasets
import pytest
from PIL import Image

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Silent
from streetvision.io.atomic import read_json
from streetvision.pipeline.config import compose_config
from streetvision.synthetic.scenes import SceneConfig, write_scenes
from tests.conftest import TINY_MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ["cross_validation.folds=2", "cross_validation.repeats=1", "cross_validation.learning_curve=[]"]
CITIES = ("boston", "denver", "los_angeles")


def commands(name):
    """The commands in the head of an example, as words."""
    head = (EXAMPLES / name).read_text().split("\n")
    lines = [re.sub(r"^#\s*", "", line) for line in head if re.match(r"#\s+streetvision ", line)]
    return [shlex.split(line)[1:] for line in lines]


def geotagged(path, number):
    """The bytes of an image with a position in its EXIF data; the next three numbers are 11 metres away at most."""
    exif, buffer = Image.Exif(), io.BytesIO()
    degrees = 50 + number // 4 * 0.01 + number % 4 * 0.00003
    exif.get_ifd(0x8825).update({1: "N", 2: (degrees, 0.0, 0.0), 3: "E", 4: (13.0, 0.0, 0.0)})
    Image.open(path).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def run(command, words, *settings):
    code, out, err = command(*words, *settings)
    assert code == 0 or (code == 3 and words[0] == "train"), out + err  # the tiny model may predict one class
    return out + err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of drawn scenes."""
    return write_scenes(tmp_path_factory.mktemp("drawn"), SceneConfig(count=240, width=96, height=72), Silent()).parent


@pytest.fixture
def scene_files(drawn, tmp_path, monkeypatch):
    """Drawn scenes by label; the examples are in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    rows = [line.split(",")[:2] for line in (drawn / "index.csv").read_text().splitlines()[1:]]
    return [[drawn / path for path, label in rows if int(label) == value] for value in (0, 1)]


@pytest.mark.parametrize(("name", "evaluations"), [("roadwork.yaml", 2), ("natix_roadwork.yaml", 1)])
def test_the_evaluation_has_the_groups_and_the_images_of_the_training(name, evaluations):
    trained = compose_config([], file=EXAMPLES / name).data
    evaluated = [
        compose_config(words[words.index("--data") + 2 :]).data for words in commands(name) if words[0] == "evaluate"
    ]
    assert len(evaluated) == evaluations
    for data in evaluated:
        assert (data.grouping, data.group_pattern, data.source_pattern) == (
            trained.grouping,
            trained.group_pattern,
            trained.source_pattern,
        )
        assert data.coco.min_area == trained.coco.min_area


@pytest.mark.slow
def test_roadwork(scene_files, tmp_path, command):
    """COCO annotations with a GPS split, a Pittsburgh split, and negatives in folders of their own."""
    negatives, positives = scene_files
    scene = tmp_path / "scene"
    (scene / "annotations").mkdir(parents=True)
    entries = []
    for number, path in enumerate(positives):
        drive, frame = divmod(number, 4)
        city = CITIES[drive % 3]
        name = f"pgh{drive:02d}_{frame:04d}.jpg" if drive % 2 else f"{city}_{drive}_1_{frame:04d}.jpg"
        (scene / "images").mkdir(exist_ok=True)
        Image.open(path).save(scene / "images" / name)
        entries.append({"id": number, "file_name": name, "width": 96, "height": 72, "scene_level_tags": {"day": 1}})
    for number, path in enumerate(negatives):
        drive, frame = divmod(number, 4)
        folder = scene / ("negatives_val" if drive % 3 == 2 else "negatives")
        folder.mkdir(exist_ok=True)
        Image.open(path).save(folder / f"{CITIES[drive % 3]}_{drive + 500}_1_{frame:04d}.jpg")

    def annotate(split, chosen):
        content = {
            "categories": [{"id": 1, "name": "Cone"}, {"id": 2, "name": "Worker"}],
            "images": chosen,
            "annotations": [
                {"id": n, "image_id": image["id"], "category_id": 1 + n % 2, "bbox": [4, 4, 20, 20], "area": 400}
                for n, image in enumerate(chosen)
            ],
        }
        (scene / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))

    drives = [int(re.search(r"\d+", entry["file_name"])[0]) for entry in entries]
    annotate("train_gps_split", [e for e, drive in zip(entries, drives, strict=True) if drive % 3 != 2])
    annotate("val_gps_split", [e for e, drive in zip(entries, drives, strict=True) if drive % 3 == 2])
    annotate("train_pittsburgh_only", [e for e in entries if e["file_name"].startswith("pgh")])
    annotate("val_pittsburgh_only", [e for e in entries if not e["file_name"].startswith("pgh")])

    for words in commands("roadwork.yaml"):
        tiny = {"train": TINY_MODEL, "evaluate": ["evaluation.n_resamples=100"], "data": ["model=random_small"]}
        extra = tiny.get(words[0], [*TINY_MODEL, *FEW, "cross_validation.n_resamples=100"])
        out = run(command, words, *extra)
        if words[0] == "train" and "run_dir=outputs/pittsburgh" not in words:
            splits = read_json(ArtifactSchema(tmp_path / "outputs" / "roadwork_us").splits_json)
            assert {row["source"] for row in splits["rows"]} == {"pgh", "boston", "denver", "los"} - {"los"}
            groups = {row["group"] for row in splits["rows"]}
            assert len(groups) < len(splits["rows"]) / 2
    assert "unseen source" in out


@pytest.mark.slow
def test_natix_roadwork(scene_files, tmp_path, command, monkeypatch):
    """A dataset with the published splits `train` and `test`, in a local folder instead of on the hub."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "scene_description": datasets.Value("string")}
    )
    negatives, positives = scene_files
    parts = {}
    for split, chosen in (("train", slice(0, 90)), ("test", slice(90, None))):
        rows = [
            {
                "image": {"bytes": geotagged(path, number), "path": path.name},
                "label": label,
                "scene_description": "cones" if label else "a road",
            }
            for label, paths in enumerate((negatives, positives))
            for number, path in enumerate(paths[chosen], start=1000 * label)
        ]
        parts[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "hub")
    found = commands("natix_roadwork.yaml")
    assert [words[0] for words in found] == ["data", "data", "train", "evaluate"]
    for words in found:
        local = [str(tmp_path / "hub") if word.startswith("hf://") else word for word in words]
        tiny = {"train": TINY_MODEL, "evaluate": ["evaluation.n_resamples=100"]}
        run(command, local, *tiny.get(words[0], []))
    trained = read_json(ArtifactSchema(tmp_path / "outputs" / "roadwork").splits_json)
    assert len(trained["rows"]) == 180
    report = read_json(tmp_path / "outputs" / "roadwork" / "on_roadwork_test" / "evaluation" / "evaluation_report.json")
    assert sum(report["counts"].values()) == len(negatives) + len(positives) - 180

"""Scenes depend on their seed only, labels are right, and colors do not reveal them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.progress import Silent
from streetvision.synthetic import scenes
from streetvision.synthetic.canvas import MARK
from streetvision.synthetic.scenes import SceneConfig, draw_labeled, draw_scene, write_scenes
from streetvision.synthetic.weather import CONDITIONS

SMALL = SceneConfig(count=8, width=96, height=72)


def read_index(index: Path) -> list[dict[str, str]]:
    with index.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_scene_depends_on_its_seed_alone() -> None:
    first = draw_scene(11, SMALL)
    repeated = draw_scene(11, SMALL.model_copy(update={"count": 500, "first_seed": 3}))
    assert np.array_equal(first.image, repeated.image)
    assert np.array_equal(first.roadwork, repeated.roadwork)
    assert (first.label, first.source) == (repeated.label, repeated.source)
    assert not np.array_equal(first.image, draw_scene(12, SMALL).image)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (64, 64), (96, 200), (600, 550)])
def test_images_have_the_configured_size(width: int, height: int) -> None:
    scene = draw_scene(5, SceneConfig(width=width, height=height))
    image = scene.image
    assert scene.roadwork.shape == (height, width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 8


def test_labels_and_sources_of_the_first_seeds_do_not_change() -> None:
    drawn = [draw_scene(seed, SMALL) for seed in range(12)]
    assert "".join(str(scene.label) for scene in drawn) == "011011001111"
    assert {scene.source for scene in (draw_scene(seed, SMALL) for seed in range(60))} == set(CONDITIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (1.0, 100, 100), (0.25, 15, 35)])
def test_the_rate_of_positives_is_as_configured(share: float, least: int, most: int) -> None:
    config = SceneConfig(width=64, height=64, positive_fraction=share)
    assert least <= sum(draw_scene(seed, config).label for seed in range(100)) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [SceneConfig(), SceneConfig(width=1280, height=720, area_fraction=(0.002, 0.02))],
    ids=["default", "large with small roadwork"],
)
def test_roadwork_covers_the_configured_area(config: SceneConfig) -> None:
    shares = [draw_labeled(seed, 1, config).roadwork.mean() for seed in range(100, 112)]
    low, high = config.area_fraction
    assert sum(low <= share <= high for share in shares) >= len(shares) - 1
    assert min(shares) > 0
    assert max(shares) / min(shares) > 3


def test_the_street_is_the_same_around_the_roadwork() -> None:
    config = SceneConfig(width=160, height=120)
    for seed in range(8):
        setting = scenes._set_scene(seed, config)
        without = np.asarray(scenes._draw_props(setting, []).image)
        marked = np.asarray(scenes._add_site(setting, seed, config).image)
        assert without[..., 3].max() == 0
        # The shadows of a site are not marked.
        changed = (marked[..., :3] != without[..., :3]).any(-1) & (marked[..., 3] != MARK)
        assert changed.mean() < 0.03


def test_the_mask_covers_the_difference_to_the_scene_without_roadwork() -> None:
    config = SceneConfig(width=160, height=120)
    for seed in range(8):
        without, marked = draw_labeled(seed, 0, config), draw_labeled(seed, 1, config)
        assert without.source == marked.source
        assert not without.roadwork.any()
        difference = np.abs(marked.image.astype(float) - without.image).mean(-1)
        assert difference[marked.roadwork].mean() > 5 * difference[~marked.roadwork].mean()


def histograms(image: np.ndarray) -> np.ndarray:
    """Square roots of the joint 8 x 8 x 8 RGB histogram and of a 16 x 4 x 4 one in HSV."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV"))
    counts = []
    for pixels, (first, second, third) in ((image, (8, 8, 8)), (hsv, (16, 4, 4))):
        a, b, c = np.moveaxis(pixels.astype(int), -1, 0)
        bins = (a * first // 256 * second + b * second // 256) * third + c * third // 256
        counts.append(np.bincount(bins.ravel(), minlength=first * second * third))
    return np.sqrt(np.concatenate(counts) / image[..., 0].size)


@pytest.mark.slow
def test_colors_do_not_predict_the_label() -> None:
    config = SceneConfig(width=128, height=96)
    drawn = [draw_scene(seed, config) for seed in range(5000, 5600)]
    features = np.stack([histograms(scene.image) for scene in drawn])
    labels = np.array([scene.label for scene in drawn])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=300))
    model.fit(features[:300], labels[:300])
    assert matthews_corrcoef(labels[300:], model.predict(features[300:])) < 0.4


def test_the_index_lists_every_image_with_its_label(tmp_path: Path) -> None:
    rows = read_index(write_scenes(tmp_path, SMALL, Silent()))
    assert [row["path"] for row in rows] == [f"images/{seed:08d}.jpg" for seed in range(8)]
    assert len({row["group"] for row in rows}) == 8
    for seed, row in enumerate(rows):
        scene = draw_scene(seed, SMALL)
        assert (row["label"], row["source"]) == (str(scene.label), scene.source)
        with Image.open(tmp_path / row["path"]) as image:
            assert (image.format, image.size) == ("JPEG", (96, 72))
            assert np.abs(np.asarray(image).astype(float) - scene.image).mean() < 8


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.model_copy(update={"count": 3 * scenes._BATCH})
    monkeypatch.setattr(scenes, "usable_cores", lambda: 2)
    several = write_scenes(tmp_path / "several", config, Silent())
    monkeypatch.setattr(scenes, "usable_cores", lambda: 1)
    single = write_scenes(tmp_path / "one", config, Silent())
    assert several.read_bytes() == single.read_bytes()
    for row in read_index(single):
        assert (single.parent / row["path"]).read_bytes() == (several.parent / row["path"]).read_bytes()


def test_existing_scenes_are_not_drawn_again(tmp_path: Path) -> None:
    image = tmp_path / "images" / "00000000.jpg"
    write_scenes(tmp_path, SMALL, Silent())
    written = image.stat().st_mtime_ns
    write_scenes(tmp_path, SMALL, Silent())
    assert image.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["image", "index", "identity", "config", "renderer"])
def test_different_or_damaged_scenes_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    index = write_scenes(tmp_path, SMALL, Silent())
    complete = index.read_bytes()
    config = SMALL
    if damage == "image":
        (tmp_path / "images" / "00000003.jpg").unlink()
    elif damage == "index":
        index.unlink()
    elif damage == "identity":
        (tmp_path / "scenes.json").write_text("{")
    elif damage == "config":
        config = SMALL.model_copy(update={"count": 5})
    else:
        monkeypatch.setattr(scenes, "RENDERER_VERSION", -1)
    before = (tmp_path / "images" / "00000000.jpg").stat().st_mtime_ns
    write_scenes(tmp_path, config, Silent())
    assert (tmp_path / "images" / "00000000.jpg").stat().st_mtime_ns > before
    assert (tmp_path / "images" / "00000003.jpg").is_file()
    assert complete.startswith(index.read_bytes())


def test_an_interrupted_run_leaves_no_index(tmp_path: Path) -> None:
    class Broken(Silent):
        def track(self, items, *, total, label):  # type: ignore[no-untyped-def]
            yield next(iter(items))
            raise KeyboardInterrupt

    write_scenes(tmp_path, SMALL, Silent())
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, SMALL.model_copy(update={"width": 100}), Broken())
    assert not (tmp_path / "index.csv").exists()
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "new", SMALL, Broken())
    assert len(read_index(write_scenes(tmp_path / "new", SMALL, Silent()))) == SMALL.count


@pytest.mark.parametrize("name", ["index.csv", "labels.json", "images"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "images" else (tmp_path / name).write_text("path,label\n")
    with pytest.raises(ConfigError):
        write_scenes(tmp_path, SMALL, Silent())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_scenes(tmp_path / "file" / "scenes", SMALL, Silent())


@pytest.mark.parametrize(
    "wrong", [{"area_fraction": (0.1, 0.05)}, {"area_fraction": (0.0, 0.1)}, {"seeds": 3}, {"count": 0}]
)
def test_an_invalid_configuration_is_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SceneConfig.model_validate(wrong)

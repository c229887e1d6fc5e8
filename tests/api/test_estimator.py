"""The scikit-learn estimator: its checks of scikit-learn, and what is special to images."""

import csv
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from streetvision import Run, StreetvisionClassifier
from streetvision.api import estimator as module
from streetvision.bundle.predictor import Prediction
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.config import LoaderConfig
from streetvision.data.records import parse_group, parse_label
from streetvision.io.atomic import read_json, write_json_atomic


class NearestMean:
    """In place of a bundle: class 1 if the mean of an image is nearer to that of the training images of class 1."""

    limits = None

    def __init__(self, means):
        self.means = np.array(means)

    def predict(self, images):
        brightness = np.array([module.decode_input(image).pixels.mean() for image in images])
        distances = np.abs(brightness[:, None] - self.means)
        p = distances[:, 0] / np.maximum(distances.sum(axis=1), 1e-9)
        return [Prediction(str(x > 0.5), int(x > 0.5), float(x), None) for x in p]


class QuickRun:
    """In place of a run: training takes the mean of each class."""

    def __init__(self, path):
        self.artifacts = ArtifactSchema(path)

    @property
    def bundle(self):
        return NearestMean(read_json(self.artifacts.export_dir / "means.json"))


@pytest.fixture
def quick(monkeypatch):
    """Fast training; returns the arguments of each call, with the rows of its index."""
    calls = []

    def train(index, *, run_dir, **settings):
        rows = list(csv.DictReader(index.open(encoding="utf-8")))
        calls.append({"rows": rows, "contents": [Path(row["path"]).read_bytes() for row in rows], **settings})
        run = QuickRun(run_dir)
        run.artifacts.export_dir.mkdir(parents=True)
        names = tuple(settings["data.class_names"])
        labels = [parse_label(row["label"], class_names=names, where="") for row in rows]
        levels = np.array([np.asarray(Image.open(row["path"])).mean() for row in rows])
        means = [levels[np.array(labels) == label].mean() for label in (0, 1)]
        write_json_atomic(run.artifacts.export_dir / "means.json", means)
        return run

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "Run", QuickRun)
    return calls


class RowClassifier(StreetvisionClassifier):
    """Draws each row of a table as an image, because the checks of scikit-learn pass tables.

    The checks of tables themselves (NaN, sparse, complex or one-dimensional values, the number of features) are met by
    `validate_data` here: they do not apply to images.
    """

    def fit(self, X, y, groups=None):
        X, y = validate_data(self, X, y)
        return super().fit(self._draw(X), y, groups)

    def predict(self, X):
        check_is_fitted(self)
        return super().predict(self._draw(validate_data(self, X, reset=False)))

    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(self._draw(validate_data(self, X, reset=False)))

    @staticmethod
    def _draw(rows):
        levels = np.clip(128 + 12 * np.asarray(rows, dtype=float), 0, 255).astype(np.uint8)
        return np.repeat(levels[:, None, :, None], 3, axis=3)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags


@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_scikit_learn(quick):
    results = check_estimator(RowClassifier(), on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert failed == {}
    assert sum(r["status"] == "passed" for r in results) > 40


@pytest.fixture
def images():
    """20 images, dark and bright in turns."""
    levels = np.random.default_rng(0).integers(0, 100, 20) + np.tile([0, 150], 10)
    return np.repeat(levels.astype(np.uint8), 6 * 8 * 3).reshape(20, 6, 8, 3)


def forms(images, folder):
    """The same images in every form."""
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    return {
        "array": images,
        "list of arrays": list(images),
        "pictures": [Image.fromarray(image) for image in images],
        "bytes": [path.read_bytes() for path in paths],
        "paths": paths,
        "array of names": np.array([str(path) for path in paths]),
        "objects": np.array([str(path) for path in paths], dtype=object),
    }


def test_every_form_of_images_gives_the_same_model(quick, images, tmp_path):
    y = np.tile(["no", "yes"], 10)
    expected = None
    for form in forms(images, tmp_path).values():
        classifier = StreetvisionClassifier().fit(form, y)
        probabilities = classifier.predict_proba(form)
        expected = probabilities if expected is None else expected
        np.testing.assert_array_equal(probabilities, expected)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert classifier.predict(form).tolist() == y.tolist()
        assert classifier.score(form, y) == 1
    assert classifier.classes_.tolist() == ["no", "yes"]


def test_frames_of_one_file_are_different_images(quick, images, tmp_path):
    first, *others = [Image.fromarray(image) for image in images]
    first.save(tmp_path / "frames.tiff", save_all=True, append_images=others)
    y = np.tile(["no", "yes"], 10)
    with Image.open(tmp_path / "frames.tiff") as file:
        classifier = StreetvisionClassifier().fit(ImageSequence.Iterator(file), y)
        np.testing.assert_array_equal(
            classifier.predict_proba(ImageSequence.Iterator(file)), classifier.predict_proba(images)
        )


@pytest.mark.parametrize(
    "labels", [[1, 2], [1, 10], ["1", "yes"], [-1.0, 1.0], [False, True], ["true", "false"], ["\U0001f6a7", "a\u2028b"]]
)
def test_any_two_labels_are_learned(quick, images, labels):
    y = np.array(labels * 10)
    assert StreetvisionClassifier().fit(images, y).predict(images).tolist() == y.tolist()


def test_parameters_and_groups_reach_the_run(quick, images):
    classifier = StreetvisionClassifier("dinov2_small", settings={"training": "frozen"}, random_state=3)
    clone(classifier).fit(images, np.tile([0, 1], 10), groups=np.arange(20) // 2)
    (call,) = quick
    names = [row["group"] for row in call["rows"]]
    assert names[::2] == names[1::2]
    assert len(set(names)) == 10
    assert (call["model"], call["training"], call["pipeline.seed"]) == ("dinov2_small", "frozen", 3)
    assert call["data.class_names"] == ["0", "1"]


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "random_small"},
        {"pipeline.seed": 4},
        {"pipeline": {"seed": 4}},
        {"data.class_names": ["a", "b"]},
        {"data": {"root": "photos"}},
        {"run_dir": "outputs/photos"},
    ],
)
def test_settings_that_the_estimator_sets_itself_are_refused(quick, images, settings):
    with pytest.raises(ConfigError):
        StreetvisionClassifier("dinov2_small", settings=settings, random_state=3).fit(images, [0, 1] * 10)


def test_a_failed_fit_keeps_the_earlier_model(quick, images, monkeypatch):
    def fail(*_, **__):
        raise DataError("stopped")

    classifier = StreetvisionClassifier().fit(images, [0, 1] * 10)
    expected = classifier.predict_proba(images)
    monkeypatch.setattr(module, "train", fail)
    with pytest.raises(DataError):
        classifier.fit(images[:4], [2, 3] * 2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(images), expected)  # noqa: S301


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_group_may_have_a_name_that_stands_for_a_missing_value(quick, images, missing):
    names = ["NA", "none", "null", "nat", "None", "a", "a ", "nan", 7]
    StreetvisionClassifier().fit(images, np.tile([0, 1], 10), groups=[*names, *names, missing, missing])
    groups = [parse_group(row["group"]) for row in quick[0]["rows"]]
    assert groups[:9] == groups[9:18]
    assert len(set(groups[:9]) - {None}) == 9
    assert groups[18:] == [None, None]


def test_encoded_images_are_trained_on_as_they_are(quick, images):
    files = []
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, ("PNG", "JPEG", "WEBP", "TIFF")[number % 4])
        files.append(buffer.getvalue())
    StreetvisionClassifier().fit(files, np.tile([0, 1], 10))
    (call,) = quick
    assert [Path(row["path"]).suffix for row in call["rows"][:4]] == [".png", ".jpeg", ".webp", ".tiff"]
    assert call["contents"] == files


def test_images_in_memory_have_the_limits_of_files(quick, images):
    y, small = np.tile([0, 1], 10), {"loader.max_megapixels": 5 * 6 * 8 / 1e6}
    StreetvisionClassifier(settings=small).fit(images, y)
    with pytest.raises(DataError):
        StreetvisionClassifier(settings={"loader": {"max_megapixels": 4 * 6 * 8 / 1e6}}).fit(images, y)


def test_a_damaged_picture_is_an_error_unless_it_is_to_be_used(quick, images):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    damaged = buffer.getvalue()[:-400] + b"\xff\xd9"

    def fit(**settings):
        picture = Image.open(io.BytesIO(damaged))
        return StreetvisionClassifier(settings=settings).fit([picture, *map(Image.fromarray, images[1:])], [0, 1] * 10)

    with pytest.raises(DataError):
        fit()
    fit(**{"data.damaged_images": "use"})


def test_cross_validation_passes_the_groups_of_each_fold(quick, images):
    groups, y = np.arange(20) // 2, np.tile([0, 1], 10)
    scores = cross_val_score(
        StreetvisionClassifier(), images, y, groups=groups, cv=GroupKFold(5), params={"groups": groups}
    )
    assert scores.tolist() == [1.0] * 5
    trained = [{row["group"] for row in call["rows"]} for call in quick]
    assert [len(names) for names in trained] == [8] * 5
    assert set.intersection(*trained) == set()


@pytest.mark.parametrize(
    ("X", "y", "error"),
    [
        ([], [], DataError),
        ("one.jpg", [0], DataError),
        (np.zeros((4, 4, 3), np.uint8), [0, 1, 0, 1], DataError),
        ([np.zeros((4, 4), np.uint8)] * 2, [0, 1], DataError),
        ([b"not an image"] * 2, [0, 1], DataError),
        (np.zeros((3, 4, 4, 3), np.uint8), [0, 1, 2], DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 0], DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 0, 1], ValueError),
        (["a.jpg", "b\udcff.jpg"], [0, 1], DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a", "\udcff"], DataError),
    ],
)
def test_wrong_images_and_labels_are_errors(quick, X, y, error):
    with pytest.raises(error):
        StreetvisionClassifier().fit(X, y)


def test_predict_needs_fit(images):
    with pytest.raises(NotFittedError):
        StreetvisionClassifier().predict(images)


def test_a_pickle_holds_the_bundle(finished_run, scenes, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: Run(finished_run))
    paths = sorted((scenes / "images").iterdir())[:2]
    classifier = StreetvisionClassifier().fit(paths, ["no", "yes"])
    copied = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (made here)
    np.testing.assert_array_equal(copied.predict_proba(paths), classifier.predict_proba(paths))
    assert copied.bundle_.bundle.folder != finished_run / "export"
    assert copied.classes_.tolist() == ["no", "yes"]


def test_predictions_have_the_limits_of_the_run(finished_run, scenes, monkeypatch, tmp_path):
    schema = ArtifactSchema(shutil.copytree(finished_run, tmp_path / "run"))
    content = read_json(schema.manifest("data"))
    content["config"]["LoaderConfig"]["max_megapixels"] = 150.0
    write_json_atomic(schema.manifest("data"), content)
    monkeypatch.setattr(module, "train", lambda *_, **__: Run(schema.output_dir))
    classifier = StreetvisionClassifier().fit(sorted((scenes / "images").iterdir())[:2], ["no", "yes"])
    copied = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (made here)
    for fitted in (classifier, copied, pickle.loads(pickle.dumps(copied))):  # noqa: S301
        assert fitted.bundle_.limits == LoaderConfig(max_megapixels=150).limits

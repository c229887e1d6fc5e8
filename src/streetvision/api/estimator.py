"""A scikit-learn classifier of images: training, calibration and threshold of a run behind `fit` and `predict`."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from streetvision.api.runs import Run, train
from streetvision.bundle.predictor import Prediction, Predictor
from streetvision.contracts.errors import ConfigError, DataError
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.image_file import READERS, UndecodableImage, check_area
from streetvision.data.image_input import ImageInput, decode_input, is_single_image
from streetvision.data.records import group_cell
from streetvision.io.user_paths import user_path
from streetvision.pipeline.config import compose_config, format_overrides
from streetvision.pipeline.settings import RunConfig

if TYPE_CHECKING:
    from sklearn.utils import Tags

Images: TypeAlias = "Iterable[ImageInput] | NDArray[Any]"


class LabelsError(DataError, ValueError):
    """The labels cannot be used. It is a ValueError too, which scikit-learn expects."""


class StreetvisionClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A binary classifier of images with the interface of scikit-learn.

    `fit` splits the images, trains, calibrates and selects a threshold, as `streetvision.train` does: the mean of the
    thresholds with the highest MCC on bootstrap resamples. `predict` applies this threshold, so it may differ from the
    class with the highest probability.

    Args:
        model: Name of a packaged model, for example "dinov2_small"; None: the small backbone of this package.
        settings: Further settings by name, nested or with dotted keys, for example `{"training": "frozen"}`.
        random_state: Seed of the run; None: that of the settings.
        progress: Print what the command line prints.

    Attributes:
        classes_: The two classes, sorted.
        run_: The run, in a temporary folder that exists as long as the estimator.
        bundle_: The predictor, with certified predictions and explanations.

    Examples:
        >>> from streetvision import StreetvisionClassifier
        >>> classifier = StreetvisionClassifier(settings=FAST).fit(IMAGES, LABELS)
        >>> classifier.predict_proba(IMAGES[:3]).shape
        (3, 2)
        >>> classifier.predict(IMAGES[:1])[0] in classifier.classes_
        True
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.settings = settings
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Images, y: ArrayLike, groups: ArrayLike | None = None) -> Self:  # noqa: N803
        """Train on images.

        Args:
            X: N images: paths, encoded bytes, PIL images, or uint8 arrays (H, W, 3); also one array (N, H, W, 3).
            y: N labels of two classes.
            groups: N group ids; images of one group stay in one split. None or NaN: the image is a group of its own.

        Raises:
            DataError: An image cannot be used.
            ValueError: The labels are not of two classes, or the lengths differ.
            ConfigError: A setting cannot be used.
        """
        images, labels = _images(X), column_or_1d(y)
        check_consistent_length(images, labels, groups)
        if (kind := type_of_target(labels, input_name="y", raise_unknown=True)) not in {"binary", "multiclass"}:
            raise LabelsError(f"y has {kind} values", "pass labels of two classes")
        classes, targets = np.unique(labels, return_inverse=True)
        if len(classes) != 2:
            raise LabelsError(
                f"Only binary classification is supported. y has {len(classes)} class{'es' * (len(classes) > 1)}",
                "pass labels of two classes",
            )
        class_names = [str(name) for name in classes]
        # As objects: in an array of text, NaN would be a name.
        units = [None] * len(images) if groups is None else column_or_1d(np.asarray(groups, dtype=object))
        settings = self._settings(class_names)
        config = compose_config(format_overrides(settings))
        folder = TemporaryDirectory(prefix="streetvision-", ignore_cleanup_errors=True)
        root = Path(folder.name)
        with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "group"])
            for number, (image, target, unit) in enumerate(zip(images, targets, units, strict=True)):
                row = [str(_image_file(image, root / str(number), config)), class_names[target], group_cell(unit)]
                try:
                    writer.writerow(row)
                except UnicodeEncodeError as error:
                    raise DataError(f"X, y or groups have text that is not Unicode: {row}", "rename it") from error
        run = train(root / "index.csv", progress=self.progress, run_dir=root / "run", **settings)
        # The folder of an earlier model is deleted here.
        self.classes_, self.bundle_, self.run_, self._folder = classes, run.bundle, run, folder
        return self

    def predict_proba(self, X: Images) -> NDArray[np.float64]:  # noqa: N803
        """Return calibrated probabilities (N, 2), in the order of `classes_`."""
        positive = np.array([prediction.probability for prediction in self._predict(X)])
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Images) -> NDArray[Any]:  # noqa: N803
        """Return the predicted classes (N,), by the threshold of the bundle."""
        decisions = np.array([prediction.decision for prediction in self._predict(X)])
        classes: NDArray[Any] = self.classes_[decisions]
        return classes

    def _predict(self, images: Images) -> list[Prediction]:
        check_is_fitted(self)
        bundle: Predictor = self.bundle_
        return bundle.predict(_images(images))

    def _settings(self, class_names: list[str]) -> dict[str, Any]:
        own: dict[str, object] = {"data.class_names": class_names}
        if self.random_state is not None:
            own["pipeline.seed"] = self.random_state
        if self.model is not None:
            own["model"] = self.model
        settings = self.settings or {}
        given = {override.partition("=")[0] for override in format_overrides(settings)}
        if taken := sorted(given & {*own, "data.root", "run_dir"}):
            raise ConfigError(
                f"the estimator sets {taken[0]} from its other arguments or the data",
                f"leave {taken[0]} out of settings",
            )
        return {**own, **settings}

    def __getstate__(self) -> dict[str, Any]:
        """The parameters, and the files of the bundle instead of the loaded model and the temporary folder."""
        state: dict[str, Any] = super().__getstate__()
        if "bundle_" not in state:
            return state
        kept = {name: value for name, value in state.items() if name not in {"_folder", "run_", "bundle_"}}
        files = {file.name: file.read_bytes() for file in sorted(self.run_.artifacts.export_dir.iterdir())}
        return kept | {"bundle_files": files, "bundle_limits": self.bundle_.limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        files, limits = state.pop("bundle_files", None), state.pop("bundle_limits", DEFAULT_LIMITS)
        super().__setstate__(state)
        if files is not None:
            self._folder = TemporaryDirectory(prefix="streetvision-", ignore_cleanup_errors=True)
            self.run_ = Run(Path(self._folder.name) / "run")
            self.run_.artifacts.export_dir.mkdir(parents=True)
            for name, content in files.items():
                (self.run_.artifacts.export_dir / name).write_bytes(content)
            self.bundle_ = self.run_.bundle
            self.bundle_.limits = limits

    def __sklearn_tags__(self) -> "Tags":
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.classifier_tags.multi_class = False
        return tags


def _images(images: Images) -> list[ImageInput]:
    """The images as a list; an array of several images is split."""
    if is_single_image(images) and not (isinstance(images, np.ndarray) and images.ndim in {1, 4}):
        raise DataError("X is a single image, expected several", "pass a list, for example [image]")
    several: list[ImageInput] = []
    for image in images:
        if isinstance(image, np.str_):
            several.append(str(image))
        elif isinstance(image, Image.Image) and isinstance(images, Iterator):
            several.append(image.copy())  # the frames of a file are one object, which is moved to the next frame
        else:
            several.append(image)
    if not several:
        raise DataError("X has no images", "pass at least one image")
    return several


def _image_file(image: ImageInput, name: Path, config: RunConfig) -> Path:
    """The file of an image: its own one, or `name` with a suffix, to which its bytes or its pixels are written."""
    if isinstance(image, str | os.PathLike):
        return user_path(os.fspath(image)).absolute()
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        kind = next((str(reader.format) for magic, reader in READERS.items() if data.startswith(magic)), None)
        if kind is None:
            formats = ", ".join(sorted({str(reader.format) for reader in READERS.values()}))
            raise DataError("encoded bytes in X are not an image", f"pass files of these formats: {formats}")
        file = name.with_suffix(f".{kind.lower()}")
        file.write_bytes(data)
        return file
    limits = config.loader.limits
    decoded = decode_input(image, limits=limits)
    check_area(decoded.pixels.shape[0] * decoded.pixels.shape[1], limits, plain=False)  # as a PNG
    if decoded.damage is not None and config.data.damaged_images == "leave_out":
        raise UndecodableImage(decoded.damage, hint="leave it out, or set data.damaged_images=use")
    file = name.with_suffix(".png")
    Image.fromarray(decoded.pixels).save(file, compress_level=1)
    return file

"""Python API of a bundle: images -> calibrated probabilities and decisions. Imports torch only for PyTorch bundles.

Shapes: H, W pixels of an image; B images.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from streetvision.bundle.format import Bundle, read_bundle, read_bundle_reference
from streetvision.bundle.graph_model import load_graph_model
from streetvision.bundle.model import BundleModel, Logits, Prepared
from streetvision.bundle.monitor_status import StatusFile
from streetvision.bundle.reference import Reference, encode_components
from streetvision.calibration.base import margins
from streetvision.calibration.calibrators import restore_calibrator
from streetvision.calibration.risk_control import abstained
from streetvision.contracts.errors import DataError
from streetvision.contracts.policies import RiskControl, ScrcPolicy
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.image_file import DecodedImage, Pixels, check_decoders
from streetvision.data.image_input import ImageInput, decode_input, is_single_image
from streetvision.data.quality import ImageQuality, measure_quality
from streetvision.eval.metrics import positive_probability
from streetvision.eval.thresholds import decide
from streetvision.io.process_pool import usable_cores
from streetvision.io.resize import Box
from streetvision.io.user_paths import user_path

ABSTAINED = -1
"""Value of `Predictor.certified` where the policy abstains."""


@dataclass(frozen=True)
class ViewPrediction:
    """The prediction of one view of an image."""

    box: Box
    """Position in the image in pixels: left, top, right, bottom."""
    probability: float
    """Probability of class 1 from this view alone, not calibrated; for a patch of a dense pass, the one of the whole
    image if all patches had its evidence."""
    weight: float
    """Influence on the prediction: the weight in a trained fusion, else the derivative of the fused log-odds."""


@dataclass(frozen=True)
class Signals:
    """What `streetvision monitor` needs of an image; neither its pixels nor its name."""

    margin: float
    """Logit of class 1 minus that of class 0, before calibration."""
    features: str
    """Components of the features, as `encode_components` writes them."""
    quality: ImageQuality


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    label: str
    """Name of the predicted class."""
    decision: int
    """Predicted class: 0 or 1, the index of `label` in the class names."""
    probability: float
    """Calibrated probability of class 1."""
    certified: int | None
    """Prediction with certified risk: 0 or 1; None if the policy abstains or certifies nothing."""
    views: tuple[ViewPrediction, ...] = ()
    """Predictions of the views, the whole image first; only from `explain`."""
    note: str | None = None
    """What the decoder found wrong with the image, which makes the prediction doubtful; None: nothing."""
    withdrawn: str | None = None
    """Why the certificate of the bundle is withdrawn; None: it is not."""
    signals: Signals | None = None
    """Only if the predictor records signals."""


@dataclass(frozen=True)
class PreparedImage:
    """One image, decoded and resized to the input of the model."""

    content: Prepared
    note: str | None = None
    """As in Prediction."""
    quality: ImageQuality | None = None
    """Only if the predictor records signals."""


class Predictor:
    """The model of a bundle with its calibration and decision policy. It works offline.

    Args:
        bundle: The bundle.
        limits: Largest accepted image.
        threads: CPU threads of the model; None: all cores. In PyTorch the number applies to the whole process.
    """

    def __init__(self, bundle: Bundle, *, limits: DecodeLimits = DEFAULT_LIMITS, threads: int | None = None) -> None:
        check_decoders()
        self.bundle, self.manifest, self.limits = bundle, bundle.manifest, limits
        self.reference: Reference | None = None
        """Set by `record_signals`."""
        self.monitor_state: StatusFile | None = None
        """Set by `use_monitor_state`."""
        self.model: BundleModel
        if bundle.manifest.runtime is None:
            # Imported here, because it loads torch, which the other runtimes do not need.
            from streetvision.bundle.torch_model import load_torch_model

            self.model = load_torch_model(bundle, threads=threads)
        else:
            self.model = load_graph_model(bundle, threads=threads)

    def with_model(self, model: BundleModel) -> "Predictor":
        """Return a predictor with the same policy and another model."""
        other = copy.copy(self)
        other.model = model
        return other

    def with_single_view(self) -> "Predictor":
        """Return a predictor without the fusion of views; phase 2 selected its threshold on such logits."""
        return self.with_model(self.model.with_single_view())

    def record_signals(self) -> None:
        """Add signals for `streetvision monitor` to all predictions.

        Raises:
            ArtifactError: The bundle has no monitoring reference.
        """
        self.reference = read_bundle_reference(self.bundle)

    def use_monitor_state(self, path: Path) -> None:
        """Certify nothing while the state of `streetvision monitor` in a file withdraws the certificate.

        Raises:
            ArtifactError: The file cannot be read, or belongs to another bundle.
        """
        self.monitor_state = StatusFile(path, self.manifest.digest)

    @property
    def inference(self) -> str:
        """Inference mode: single_view, or the mode of the fusion of views."""
        return self.model.inference

    @property
    def threshold(self) -> float:
        """An image is class 1 if its probability is at least this value."""
        policy = self.manifest.policy
        return policy.scrc_params.threshold if isinstance(policy, ScrcPolicy) else policy.threshold

    @property
    def risk_control(self) -> RiskControl | None:
        """The guarantee for certified predictions; None if the policy has none."""
        policy = self.manifest.policy
        return policy.scrc_params.risk_control if isinstance(policy, ScrcPolicy) else None

    def predict(self, images: "ImageInput | Iterable[ImageInput]", *, batch_size: int = 64) -> list[Prediction]:
        """Predict one image or several.

        The orientation in `image.getexif()` of a PIL image is applied, as it is for a file. `ImageOps.exif_transpose`
        removes it. `rotate` and `transpose` keep it: after them, use `del image.getexif()[0x0112]`.

        A path, bytes, or a PIL image of an open file give the same result. Pixels that are already in memory are
        resized from their full size, so the result for a large JPEG differs a little from that of its file.

        Args:
            images: Paths, encoded bytes, PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W).
            batch_size: Views per batch; an image without fusion is one view.

        Raises:
            UndecodableImage: A file is not an image, or exceeds the limits; it is a DataError.
            DataError: An array has another shape or type.
        """
        if is_single_image(images):
            images = [images]
        elif not isinstance(images, Iterable):
            raise DataError(f"expected an image or several, got a value of type {type(images).__name__}")
        several = cast("Iterable[ImageInput]", images)
        batches = self.stream(several, batch_size=batch_size)
        return [prediction for batch in batches for prediction in batch]

    def stream(self, images: Iterable[ImageInput], *, batch_size: int = 64) -> Iterator[list[Prediction]]:
        """Predict in batches. At most two batches are in memory; threads decode while the model runs."""
        return map(self.predict_prepared, self._stream_prepared(images, batch_size=batch_size))

    def stream_logits(self, images: Iterable[ImageInput], *, batch_size: int = 64) -> Iterator[Logits]:
        """Return the logits (B, 2) of images in batches, before calibration."""
        for batch in self._stream_prepared(images, batch_size=batch_size):
            yield self.logits([image.content for image in batch])

    def _stream_prepared(self, images: Iterable[ImageInput], *, batch_size: int) -> Iterator[list[PreparedImage]]:
        size = self.images_per_batch(batch_size)
        with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
            remaining = iter(images)
            pending = [self._submit(pool, image) for image in islice(remaining, size)]
            while pending:
                upcoming = [self._submit(pool, image) for image in islice(remaining, size)]
                yield [future.result() for future in pending]
                pending = upcoming

    def _submit(self, pool: ThreadPoolExecutor, image: ImageInput) -> Future[PreparedImage]:
        """Prepare an image in the pool.

        A Pillow image is decoded before the next image is requested: the frames of a file are one object, which is
        moved to the next frame, and Pillow cannot load an object in two threads.
        """
        return pool.submit(self.prepare_with_note, self.decode(image) if isinstance(image, Image.Image) else image)

    def images_per_batch(self, batch_size: int) -> int:
        """Return the number of images that have about `batch_size` views in total; at least one."""
        return max(1, batch_size // self.model.views_per_image)

    def read_image(self, image: ImageInput) -> Pixels:
        """Decode an image to uint8 (H, W, 3) at full resolution; raises as `predict`."""
        return decode_input(image, limits=self.limits).pixels

    def decode(self, image: ImageInput) -> DecodedImage:
        """Decode an image for the model, which may need fewer pixels than it has; raises as `predict`."""
        return decode_input(image, limits=self.limits, decode_size=self.model.decode_size)

    def prepare(self, image: ImageInput) -> Prepared:
        """Decode an image and resize it to the model's input, uint8 (3, h, w), or split it into views."""
        return self.prepare_with_note(image).content

    def prepare_with_note(self, image: "ImageInput | DecodedImage") -> PreparedImage:
        """Prepare an image, or the result of `decode`, and keep what the decoder found wrong with it."""
        decoded = image if isinstance(image, DecodedImage) else self.decode(image)
        quality = None if self.reference is None else measure_quality(decoded)
        return PreparedImage(self.model.prepare(decoded.pixels), decoded.damage, quality)

    def predict_prepared(self, images: Sequence[PreparedImage]) -> list[Prediction]:
        """Predict images from `prepare_with_note` in one batch."""
        content = [image.content for image in images]
        if self.reference is None:
            predictions = self.predictions(self.logits(content))
            return [replace(prediction, note=image.note) for prediction, image in zip(predictions, images, strict=True)]
        output = self.model.outputs(content)
        columns = (
            self.predictions(output.logits),
            images,
            margins(output.logits).tolist(),
            self.reference.components(output.features),
        )
        return [
            replace(prediction, note=image.note, signals=_signals(margin, components, image.quality))
            for prediction, image, margin, components in zip(*columns, strict=True)
        ]

    def explain(self, image: "ImageInput | DecodedImage") -> Prediction:
        """Predict one image, or the result of `decode`, with the prediction of each of its views."""
        decoded = image if isinstance(image, DecodedImage) else self.decode(image)
        output = self.model.view_logits(decoded)
        probabilities = positive_probability(output.view_logits).tolist()
        views = map(ViewPrediction, output.boxes, probabilities, output.weights.tolist())
        return replace(self.predictions(output.logits[None])[0], views=tuple(views), note=decoded.damage)

    def logits(self, images: Sequence[Prepared]) -> Logits:
        """Return the logits (B, 2) of images from `prepare`, before calibration."""
        return self.model.logits(images)

    def predictions(self, logits: ArrayLike) -> list[Prediction]:
        """Apply calibration and decision policy to logits (B, 2)."""
        names, probabilities = self.manifest.class_names, self.probabilities(logits)
        decisions = decide(probabilities, self.threshold).astype(int).tolist()
        certified = [None if decision == ABSTAINED else decision for decision in self.certified(logits).tolist()]
        withdrawn = None if self.monitor_state is None else self.monitor_state.withdrawn
        if withdrawn is not None:
            certified = [None] * len(certified)
        rows = zip(decisions, probabilities.tolist(), certified, strict=True)
        return [Prediction(names[decision], decision, p, certain, withdrawn=withdrawn) for decision, p, certain in rows]

    def certified(self, logits: ArrayLike) -> NDArray[np.int64]:
        """Return the predictions (B,) with certified risk for logits (B, 2): 0, 1 or ABSTAINED.

        They depend on the two bounds of the risk control and not on `threshold`, so they may differ from `decision`.
        """
        margin, control = margins(logits), self.risk_control
        if control is None or control.lo is None or control.hi is None:
            return np.full(len(margin), ABSTAINED)
        return np.where(abstained(margin, control.lo, control.hi), ABSTAINED, margin >= control.hi)

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return the calibrated probabilities of class 1 (B,) for logits (B, 2)."""
        policy = self.manifest.policy
        if isinstance(policy, ScrcPolicy):
            return restore_calibrator(policy.scrc_params.calibrator).probabilities(logits)
        return positive_probability(logits)


def _signals(margin: float, components: NDArray[np.float32], quality: ImageQuality | None) -> Signals:
    assert quality is not None, "the images were prepared before record_signals"
    return Signals(margin, encode_components(components), quality)


def load_bundle(path: str | Path, *, limits: DecodeLimits = DEFAULT_LIMITS, threads: int | None = None) -> Predictor:
    """Load a bundle. All digests are checked; nothing is downloaded or unpickled.

    Args:
        path: Folder of the bundle, or its bundle.json.
        limits: Largest accepted image, for example `streetvision.data.config.DecodeLimits(max_megapixels=150)`.
        threads: CPU threads of the model; None: all cores.

    Raises:
        ArtifactError: A file or field of the bundle is invalid.
        ConfigError: The runtime of the bundle is not installed.
        MachineError: An image decoder does not work on this machine.
    """
    return Predictor(read_bundle(user_path(path)), limits=limits, threads=threads)

"""Images in, probabilities and decisions out: the whole public API of a shipped model."""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from streetvision.bundle.format import Bundle, read_bundle
from streetvision.bundle.runtimes.registry import GraphClassifier, open_graph
from streetvision.calibration.base import margins
from streetvision.calibration.calibrators import restore_calibrator
from streetvision.calibration.risk_control import abstained
from streetvision.contracts.errors import DataError
from streetvision.contracts.policies import RiskControl, ScrcPolicy
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.decode import decode_image, read_image
from streetvision.eval.metrics import positive_probability
from streetvision.eval.thresholds import decide
from streetvision.io.tensors import load_into, load_state
from streetvision.io.validators import validate_json
from streetvision.models.config import FusionDescription
from streetvision.models.device import pick_device
from streetvision.models.fused import FusedClassifier, Model, images_per_batch, load_fused
from streetvision.models.module import Classifier, ClassifierDescription, ImageClassifier, build_classifier
from streetvision.models.multi_view import Box, Views, plan_views

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8] | Tensor
ABSTAINED = -1
"""Among certified answers: a person decides."""
ONE_IMAGE = (str, Path, bytes, Image.Image, np.ndarray, Tensor)
SINGLE_VIEW = "single_view"
CPU = torch.device("cpu")
"""Where exported graphs run."""
Prepared: TypeAlias = Tensor | Views
"""One image as the model takes it: uint8 (3, S, S), or its views."""


@dataclass(frozen=True)
class ViewAnswer:
    """What the model saw in one view of an image."""

    box: Box
    """Where the view lies, pixels of the image: left, top, right, bottom."""
    probability: float
    """Of class 1 by this view alone, not calibrated."""
    weight: float
    """How much it counted: its weight in a trained fusion; else how far the fused margin moves with the view's."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    label: str
    """Name of the class that was decided."""
    decision: int
    """0 or 1, the position of `label` among the class names."""
    probability: float
    """Calibrated probability of class 1."""
    certified: int | None
    """The answer whose risk is certified, 0 or 1; None where a person decides, or where nothing is certified."""
    views: tuple[ViewAnswer, ...] = ()
    """What each view shows, the whole image first; only `explain` tells."""


class Predictor:
    """A shipped model: decodes, scores, calibrates and decides as the bundle says, offline, on the best device here."""

    def __init__(self, bundle: Bundle, *, limits: DecodeLimits = DEFAULT_LIMITS) -> None:
        self.bundle, self.manifest, self.limits = bundle, bundle.manifest, limits
        classifier, runtime = open_classifier(bundle), bundle.manifest.runtime
        if runtime is None:
            self._look_through(classifier, pick_device())
        else:
            graph = open_graph(classifier, bundle.folder, name=runtime.name, precision=runtime.precision)
            self._look_through(graph, CPU)

    def _look_through(self, classifier: ImageClassifier, device: torch.device) -> None:
        fused = self.manifest.fusion_description is not None
        self.device, self.classifier = device, classifier
        self.model: Model = _with_fusion(classifier, self.bundle) if fused else classifier
        self.model.to(device).eval()

    def with_graph(self, graph: GraphClassifier) -> "Predictor":
        """The same predictor, its images through an exported graph."""
        other = copy.copy(self)
        other._look_through(graph, CPU)
        return other

    @property
    def inference(self) -> str:
        """How many looks at each image, and how they are fused: single_view, or the mode of the fusion."""
        return self.model.description.mode if isinstance(self.model, FusedClassifier) else SINGLE_VIEW

    def with_single_view(self) -> "Predictor":
        """The same model without its fusion, whose logits are those that phase 2's threshold was chosen on."""
        plain = copy.copy(self)
        plain.model = self.classifier
        return plain

    @property
    def threshold(self) -> float:
        """An image is class 1 when its probability is at least this."""
        policy = self.manifest.policy
        return policy.scrc_params.threshold if isinstance(policy, ScrcPolicy) else policy.threshold

    def predict(self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = 64) -> list[Prediction]:
        """One answer for each image: paths, encoded bytes, PIL images, uint8 arrays (H, W, 3) or tensors (3, H, W).

        Raises UndecodableImage (a DataError) for what holds no image, DataError for arrays of another shape or type.
        """
        several = [images] if isinstance(images, ONE_IMAGE) else images
        return [answer for batch in self.stream(several, batch_size=batch_size) for answer in batch]

    def stream(self, images: Iterable[ImageInput], *, batch_size: int = 64) -> Iterator[list[Prediction]]:
        """The same in batches, with at most two of them in memory; decoding runs in threads beside the model.

        A batch is of `batch_size` images, or of as many as have that many views.
        """
        return map(self.answers, self.stream_logits(images, batch_size=batch_size))

    def stream_logits(self, images: Iterable[ImageInput], *, batch_size: int = 64) -> Iterator[Tensor]:
        """Logits (B, 2) of the images in batches: what `answers` takes."""
        size = images_per_batch(self.model, batch_size)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            remaining = iter(images)
            pending = [pool.submit(self.prepare, image) for image in islice(remaining, size)]
            while pending:
                upcoming = [pool.submit(self.prepare, image) for image in islice(remaining, size)]
                yield self.logits(default_collate([future.result() for future in pending]))
                pending = upcoming

    def prepare(self, image: ImageInput) -> Prepared:
        """One image as the model takes it, from its full resolution: uint8 (3, S, S), or its views."""
        return self.model.prepare(as_pixels(image, self.limits))

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Prediction]:
        """Answers for images that `prepare` made, in one forward pass."""
        return self.answers(self.logits(default_collate(list(images))))

    @torch.inference_mode()
    def explain(self, image: ImageInput) -> Prediction:
        """The answer for one image, with what each view of it shows."""
        pixels = as_pixels(image, self.limits)
        whole = Box(0, 0, pixels.shape[2], pixels.shape[1])
        if not isinstance(self.model, FusedClassifier):
            logits = self.logits(default_collate([self.model.prepare(pixels)]))
            return replace(self.answers(logits)[0], views=_views([whole], logits, torch.ones(1)))
        views = self.model.prepare(pixels)
        look = self.model.forward_details(default_collate([views]).to(self.device))
        boxes = plan_views(whole.bottom, whole.right, self.model.description.views)
        seen = [box for box, there in zip(boxes, views.mask.tolist(), strict=True) if there]
        found = _views(seen, look.view_logits[0][views.mask].float().cpu(), look.weights[0][views.mask].cpu())
        return replace(self.answers(look.logits.float().cpu())[0], views=found)

    def answers(self, logits: Tensor) -> list[Prediction]:
        """Logits (B, 2) -> the bundle's calibrated probability, decision and certified answer for each row."""
        names, probabilities = self.manifest.class_names, self.probabilities(logits)
        decisions = decide(probabilities, self.threshold).astype(int).tolist()
        certified = [None if answer == ABSTAINED else answer for answer in self.certified(logits).tolist()]
        rows = zip(decisions, probabilities.tolist(), certified, strict=True)
        return [Prediction(names[decision], decision, p, answer) for decision, p, answer in rows]

    @torch.inference_mode()
    def logits(self, images: Prepared) -> Tensor:
        """Images (B, 3, S, S), or views of B images -> logits (B, 2) float32 on the CPU, before calibration."""
        logits: Tensor = self.model(images.to(self.device))
        return logits.float().cpu()

    @property
    def risk_control(self) -> RiskControl | None:
        """What the policy promises of its certified answers; None where its kind promises nothing."""
        policy = self.manifest.policy
        return policy.scrc_params.risk_control if isinstance(policy, ScrcPolicy) else None

    def certified(self, logits: Tensor) -> NDArray[np.int64]:
        """The answers (B,) to logits (B, 2) whose risk is certified: 0, 1, or HANDED_OVER to a person.

        They follow two ends of their own and not `threshold`: an image between the three may get one answer here and
        another from the classifier that always answers.
        """
        control = self.risk_control
        if control is None or control.lo is None or control.hi is None:
            return np.full(len(logits), ABSTAINED)
        margin = margins(logits.numpy())
        return np.where(abstained(margin, control.lo, control.hi), ABSTAINED, margin >= control.hi)

    def probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        """Logits (B, 2) -> calibrated probabilities of class 1 (B,)."""
        policy = self.manifest.policy
        if isinstance(policy, ScrcPolicy):
            return restore_calibrator(policy.scrc_params.calibrator).probabilities(logits.numpy())
        return positive_probability(logits.numpy())


def load_bundle(path: str | Path) -> Predictor:
    """The model in a bundle: a folder or its bundle.json. Every seal is checked; nothing is downloaded or unpickled.

    Raises ArtifactError that names the file and field that is wrong.
    """
    return Predictor(read_bundle(Path(path)))


def open_classifier(bundle: Bundle) -> Classifier:
    """The classifier of a bundle in PyTorch, on the CPU and in eval mode, without its fusion."""
    description = validate_json(bundle.folder / bundle.manifest.model_description, ClassifierDescription)
    checkpoint = bundle.folder / bundle.manifest.model_checkpoint
    classifier = build_classifier(description)
    load_into(classifier, load_state(checkpoint), source=str(checkpoint))
    return classifier


def _with_fusion(classifier: ImageClassifier, bundle: Bundle) -> FusedClassifier:
    manifest = bundle.manifest
    assert manifest.fusion_description is not None
    description = validate_json(bundle.folder / manifest.fusion_description, FusionDescription)
    weights = None if manifest.fusion_weights is None else bundle.folder / manifest.fusion_weights
    return load_fused(classifier, description, weights)


def _views(boxes: list[Box], logits: Tensor, weights: Tensor) -> tuple[ViewAnswer, ...]:
    probabilities = positive_probability(logits.numpy()).tolist()
    return tuple(map(ViewAnswer, boxes, probabilities, weights.tolist()))


def as_pixels(image: ImageInput, limits: DecodeLimits) -> Tensor:
    """Any accepted image as uint8 (3, H, W); raises DataError for what is none."""
    if isinstance(image, str | Path):
        return read_image(Path(image), limits=limits)
    if isinstance(image, bytes):
        return decode_image(image, limits=limits)
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    tensor = torch.from_numpy(image.copy()).movedim(-1, 0) if isinstance(image, np.ndarray) else image
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise DataError(
            f"expected a uint8 image of three channels, came {tensor.dtype} {tuple(tensor.shape)}",
            "give arrays as (H, W, 3) and tensors as (3, H, W), with values from 0 to 255",
        )
    return tensor

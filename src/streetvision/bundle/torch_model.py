"""The model of a bundle in PyTorch, the only module of inference that imports torch.

Shapes: H, W pixels of an image; h, w pixels of the model's input; B images, V views.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from streetvision.bundle.format import Bundle, read_classifier_description, read_fusion_description
from streetvision.bundle.model import BundleModel, ModelOutput, Prepared, ViewLogits
from streetvision.contracts.errors import MachineError
from streetvision.data.image_file import DecodedImage, Pixels
from streetvision.io.resize import Box, ImageSize
from streetvision.io.tensors import load_into, load_state
from streetvision.models.device import pick_device
from streetvision.models.fused import FusedClassifier, Model, load_fused
from streetvision.models.module import Classifier, build_classifier
from streetvision.models.multi_view import Views
from streetvision.models.views import ViewArrays


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Raise MachineError if the GPU has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "the GPU has too little memory for this model",
            "end other processes on the GPU, or set CUDA_VISIBLE_DEVICES to an empty value to predict on the CPU",
        ) from error


class TorchModel(BundleModel):
    """A classifier in PyTorch, with or without a fusion of views.

    Args:
        model: The classifier; it is moved to `device`.
        device: Where the forward pass runs.

    Raises:
        MachineError: The GPU has too little memory, even for one image.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        with _enough_memory():
            self.model, self.device = model.to(device).eval(), device
        self.views_per_image = model.views_per_image
        if isinstance(model, FusedClassifier):
            self.inference = model.description.mode

    @property
    def classifier(self) -> Classifier:
        """The classifier of single views."""
        classifier = self.model.classifier if isinstance(self.model, FusedClassifier) else self.model
        assert isinstance(classifier, Classifier)
        return classifier

    def decode_size(self, image: ImageSize) -> ImageSize:
        """Return the smallest size to which the decoder may reduce an image of H x W pixels before `prepare`."""
        return self.model.decode_size(image)

    def prepare(self, pixels: Pixels) -> Prepared:
        """Resize a decoded image, uint8 (H, W, 3), or split it into views."""
        prepared = self.model.prepare(torch.from_numpy(pixels).permute(2, 0, 1))
        if isinstance(prepared, Views):
            return ViewArrays(*(part.numpy() for part in prepared))
        return prepared.numpy()

    def outputs(self, images: Sequence[Prepared]) -> ModelOutput:
        """Return logits and features of prepared images in one batch, or in smaller ones if the GPU lacks memory."""
        if len(images) == 1:
            with _enough_memory():
                return self._outputs(images)
        with suppress(torch.OutOfMemoryError):
            return self._outputs(images)
        middle = len(images) // 2
        halves = [self.outputs(images[:middle]), self.outputs(images[middle:])]
        return ModelOutput(
            np.concatenate([half.logits for half in halves]), np.concatenate([half.features for half in halves])
        )

    @torch.inference_mode()
    def _outputs(self, images: Sequence[Prepared]) -> ModelOutput:
        batch = self._batch(images)
        if isinstance(self.model, FusedClassifier):
            assert isinstance(batch, Views)
            embedded = self.model.embed(batch)
            logits, features = self.model.fuse(embedded), embedded.features[:, 0]
        else:
            assert isinstance(batch, Tensor)
            features = self.classifier.embed(batch)
            logits = self.classifier.head(features)
        return ModelOutput(logits.float().cpu().numpy(), features.float().cpu().numpy())

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features (B, P) of resized images (B, 3, h, w)."""
        return self.classifier.embed(torch.from_numpy(images).to(self.device)).float().cpu().numpy()

    @_enough_memory()
    @torch.inference_mode()
    def view_logits(self, image: DecodedImage) -> ViewLogits:
        """Return the logits of an image and of each of its views."""
        height, width = image.size
        prepared = self.prepare(image.pixels)
        if not isinstance(self.model, FusedClassifier) or not isinstance(prepared, ViewArrays):
            logits = self.logits([prepared])
            return ViewLogits(logits[0], (Box(0, 0, width, height),), logits, np.ones(1, dtype=np.float32))
        output = self.model.forward_details(Views(*(torch.from_numpy(part)[None] for part in prepared)).to(self.device))
        mask = output.mask[0].cpu().numpy()
        return ViewLogits(
            output.logits[0].float().cpu().numpy(),
            tuple(box for box, used in zip(self.model.boxes(height, width), mask, strict=True) if used),
            output.view_logits[0].float().cpu().numpy()[mask],
            output.weights[0].float().cpu().numpy()[mask],
        )

    def with_single_view(self) -> "TorchModel":
        """Return the same classifier without its fusion of views."""
        return TorchModel(self.classifier, self.device)

    def _batch(self, images: Sequence[Prepared]) -> Tensor | Views:
        """Stack prepared images on the device."""
        tensors = [
            Views(*map(torch.from_numpy, image)) if isinstance(image, ViewArrays) else torch.from_numpy(image)
            for image in images
        ]
        batch: Tensor | Views = default_collate(tensors)
        return batch.to(self.device)


def load_torch_model(bundle: Bundle, *, threads: int | None = None) -> TorchModel:
    """Load the PyTorch model of a bundle on the best device of this machine.

    Args:
        bundle: A bundle without a runtime.
        threads: CPU threads of torch in the whole process; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    classifier, fusion = load_classifier(bundle), read_fusion_description(bundle)
    if fusion is None:
        return TorchModel(classifier, pick_device())
    weights = bundle.manifest.fusion_weights
    fused = load_fused(classifier, fusion, None if weights is None else bundle.folder / weights)
    return TorchModel(fused, pick_device())


def load_classifier(bundle: Bundle) -> Classifier:
    """Load the classifier of a bundle in PyTorch, on the CPU and in eval mode, without its fusion."""
    checkpoint = bundle.folder / bundle.manifest.model_checkpoint
    classifier = build_classifier(read_classifier_description(bundle))
    load_into(classifier, load_state(checkpoint), source=str(checkpoint))
    return classifier

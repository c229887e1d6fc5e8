"""The monitoring reference of a bundle: its images in numbers, to compare later images with.

It has no image and no path. Half of its images are points: features from which the distance of other images is
measured. The distances of the other half are those of images that the points do not include, as for later images.

Shapes: P width of the model's features, C components, A points, B other images, M images with scores, Q quality values.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.numpy import save

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.data.quality import ImageQuality
from streetvision.io.arrays import read_arrays

FloatArray = NDArray[np.float64]

REFERENCE = "monitoring_reference.safetensors"
"""Name of the file in a run and in a bundle."""
MAX_BYTES = 4 * 2**20
COMPONENTS = 32
MAX_IMAGES = 1000
"""Images with features and quality, of which half are points."""
MAX_SCORES = 10_000
MIN_IMAGES = 20
"""Fewest images in each half; with fewer, the reference has no distances."""
FEATURE_LIMIT = 1e3
"""Bound of the components, which are stored in 16 bits."""
SMALLEST_UNITS = np.array([0.02, 0.02, 0.02, 0.02, 0.05, 2.0])
"""(Q,) smallest units of the comparable quality values, for cameras with fixed settings."""
LEAST_SHARPNESS, NO_JPEG = 1e-3, -500.0
NO_REFERENCE_HINT = "run phase5 and phase6 again with phase6.policy=scrc"


class ReferenceHeader(Artifact):
    """The metadata of the reference."""

    schema_version: Literal[1] = 1
    scores_sha256: Digest
    """Digest of the scores that the policy was fitted on."""
    exact_scores: bool
    """Whether the scores come from the model that ships, on images that it was not trained on. For an exported runtime,
    they come from its PyTorch model: the rounding of bf16 and int8 is not considered."""
    exact_features: bool
    """The same for the features."""
    groups: bool
    """Whether the images have groups, of which each is one image here."""
    images: int = Field(ge=1)
    """Number of images before one was taken of each group."""
    units: int = Field(ge=1)
    """Number of groups, or of images without a group."""


@dataclass(frozen=True)
class Reference:
    """The reference in memory."""

    header: ReferenceHeader
    margins: FloatArray
    """(M,) logit of class 1 minus that of class 0, before calibration."""
    labels: NDArray[np.int64]
    """(M,) 0 or 1."""
    quality: FloatArray
    """(A + B, Q) as ImageQuality; NaN: no value."""
    projection: NDArray[np.int8]
    """(P, C) principal components in units of `scale`."""
    scale: NDArray[np.float32]
    """(C,) includes the whitening."""
    offset: NDArray[np.float32]
    """(C,) projected mean."""
    points: NDArray[np.float32]
    """(A, C) components of the points."""
    distances: FloatArray
    """(B,) distance of the other images from the nearest point."""

    def components(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reduce features (N, P) of the model to components (N, C) with unit variance in the reference."""
        if features.shape[1] != len(self.projection):
            raise ArtifactError(
                f"the monitoring reference is for {len(self.projection)} features, the model has {features.shape[1]}",
                "export the bundle again",
            )
        projected: NDArray[np.float32] = _standardize(features) @ self.projection.astype(np.float32)
        projected = projected * self.scale - self.offset
        return np.clip(projected, -FEATURE_LIMIT, FEATURE_LIMIT).astype(np.float16).astype(np.float32)

    def nearest(self, components: NDArray[np.float32]) -> FloatArray:
        """Return the distance of each row of components (N, C) from the nearest point."""
        squares = (components**2).sum(axis=1)[:, None] + (self.points**2).sum(axis=1)
        squares -= 2 * components @ self.points.T
        distance: FloatArray = np.sqrt(np.maximum(squares.min(axis=1), 0)).astype(np.float64)
        return distance

    @property
    def quality_distances(self) -> FloatArray:
        """(B,) distance of the other images' quality from the nearest point."""
        return self.nearest_quality(self.quality[len(self.points) :])

    def nearest_quality(self, quality: FloatArray) -> FloatArray:
        """Return the distance of each row of quality values (N, Q) from the nearest point.

        Sizes and sharpness count by their ratio. The unit of each value is its standard deviation among the points.
        """
        from scipy.spatial import KDTree  # not loaded for predictions

        points = _comparable(self.quality[: len(self.points)])
        unit, centre = np.maximum(points.std(axis=0), SMALLEST_UNITS), points.mean(axis=0)
        tree = KDTree((points - centre) / unit)
        distance: FloatArray = tree.query((_comparable(quality) - centre) / unit)[0]
        return distance


def build_reference(
    header: ReferenceHeader,
    *,
    margins: FloatArray,
    labels: NDArray[np.int64],
    features: NDArray[np.float32],
    quality: Sequence[ImageQuality],
) -> Reference:
    """Build the reference from one image of each group.

    Args:
        header: The metadata.
        margins: (M,) of at most MAX_SCORES images.
        labels: (M,) of the same images.
        features: (N, P) of at most MAX_IMAGES images, in random order.
        quality: N values of these images.
    """
    half = len(features) // 2
    points = features[: half if half >= MIN_IMAGES else 0]
    projection, scale, offset = _principal_components(points)
    values = np.array([[np.nan if value is None else value for value in row] for row in quality], dtype=np.float64)
    reference = Reference(
        header, margins, labels, values, projection, scale, offset, np.zeros((0, len(scale)), np.float32), np.zeros(0)
    )
    if not len(points):
        return reference
    nodes = reference.components(points)
    with_points = Reference(header, margins, labels, values, projection, scale, offset, nodes, distances=np.zeros(0))
    distances = with_points.nearest(with_points.components(features[half:]))
    return Reference(header, margins, labels, values, projection, scale, offset, nodes, distances)


def _principal_components(
    points: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Projection in 8 bits, scale and offset of features (A, P); without points there are no components."""
    if not len(points):
        return np.zeros((points.shape[1], 0), np.int8), np.zeros(0, np.float32), np.zeros(0, np.float32)
    rows = _standardize(points)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    count = min(COMPONENTS, int((singular > 1e-3 * singular[0]).sum()))
    largest = np.abs(directions[:count]).max(axis=1)
    projection = np.round(directions[:count] / largest[:, None] * 127).astype(np.int8).T
    projected = rows @ projection.astype(np.float32)
    scale = 1 / np.maximum(projected.std(axis=0), 1e-6)
    return projection, scale.astype(np.float32), (mean @ projection.astype(np.float32) * scale).astype(np.float32)


def _comparable(quality: FloatArray) -> FloatArray:
    """Quality values (N, Q) on scales on which differences are comparable; another format than JPEG is far away."""
    width, height, brightness, contrast, sharpness, jpeg_quality = quality.T
    sizes = np.log(np.maximum([width, height], 1))
    logged = np.log(np.maximum(sharpness, 0) + LEAST_SHARPNESS)
    return np.stack([*sizes, brightness, contrast, logged, np.nan_to_num(jpeg_quality, nan=NO_JPEG)], axis=1)


def _standardize(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row with mean 0 and variance 1, as the first layer of the head does."""
    centred = features - features.mean(axis=1, keepdims=True)
    standardized: NDArray[np.float32] = centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-6)
    return standardized


ARRAYS = {
    "margins": np.float32,
    "labels": np.uint8,
    "quality": np.float32,
    "projection": np.int8,
    "scale": np.float32,
    "offset": np.float32,
    "points": np.float16,
    "distances": np.float32,
}
"""Arrays of the file and their types."""


def reference_bytes(reference: Reference) -> bytes:
    """Return the content of REFERENCE."""
    arrays = {name: np.ascontiguousarray(getattr(reference, name).astype(dtype)) for name, dtype in ARRAYS.items()}
    return save(arrays, {"header": reference.header.model_dump_json()})


def read_reference(path: Path) -> Reference:
    """Read a reference; raises ArtifactError if it is missing, damaged or too large."""
    arrays, metadata = read_arrays(path, name="the monitoring reference", hint=NO_REFERENCE_HINT, limit=MAX_BYTES)
    try:
        header = ReferenceHeader.model_validate_json(metadata.get("header", ""))
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"cannot read the monitoring reference {str(path)!r}: {reason}", NO_REFERENCE_HINT
        ) from error
    if problem := _problem(arrays):
        raise ArtifactError(f"the monitoring reference {str(path)!r} is damaged: {problem}", NO_REFERENCE_HINT)
    wide = {"margins": np.float64, "labels": np.int64, "quality": np.float64, "points": np.float32}
    values = {name: array.astype(wide.get(name, array.dtype)) for name, array in arrays.items()}
    values["distances"] = values["distances"].astype(np.float64)
    return Reference(header, **values)


def _problem(arrays: dict[str, NDArray[Any]]) -> str | None:
    if arrays.keys() != ARRAYS.keys():
        return f"it has {', '.join(sorted(arrays))} in place of {', '.join(sorted(ARRAYS))}"
    for name, dtype in ARRAYS.items():
        if arrays[name].dtype != dtype:
            return f"{name} is {arrays[name].dtype}"
        if arrays[name].ndim == 0:
            return f"{name} has shape ()"
        if name != "quality" and not np.isfinite(arrays[name].astype(np.float64)).all():
            return f"{name} is not finite"
    projection, points, quality = arrays["projection"], arrays["points"], arrays["quality"]
    n, components = len(arrays["margins"]), len(arrays["scale"])
    shapes = {
        "margins": (n,),
        "labels": (n,),
        "quality": (len(quality), len(ImageQuality._fields)),
        "projection": (len(projection), components),
        "scale": (components,),
        "offset": (components,),
        "points": (len(points), components),
        "distances": (len(arrays["distances"]),),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            return f"{name} has shape {arrays[name].shape}"
    finite = np.isfinite(quality[:, :-1]).all() and not np.isinf(quality).any()
    if not finite or len(points) + len(arrays["distances"]) > len(quality):
        return "quality does not fit the points"
    if (len(points) == 0) != (len(arrays["distances"]) == 0) or (arrays["labels"] > 1).any():
        return "labels or distances are invalid"
    return None


def encode_components(components: NDArray[np.float32]) -> str:
    """Return components (C,) as text: base64 of 16-bit floats."""
    return base64.b64encode(components.astype("<f2").tobytes()).decode()


def decode_components(texts: Sequence[str], count: int) -> NDArray[np.float32]:
    """Return components (N, count); raises ValueError for invalid text."""
    size = 4 * -(-2 * count // 3)
    if any(len(text) != size for text in texts):
        raise ValueError(f"features must have {size} characters")
    try:
        data = b"".join([binascii.a2b_base64(text, strict_mode=True) for text in texts])
    except (binascii.Error, ValueError) as error:
        raise ValueError("features are not base64") from error
    values = np.frombuffer(data, dtype="<f2").astype(np.float32).reshape(len(texts), count)
    if not np.isfinite(values).all():
        raise ValueError("features are not finite")
    return values

"""Perceptual hashes: small descriptors that change little with scaling, re-encoding, brightness and a small crop.

Shapes: N images, T = 96 pixels per side of a thumbnail.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn

from streetvision.data.transforms.color import LUMA
from streetvision.io.resize_tensor import resize_tensor

THUMBNAIL_SIZE = 96
"""Pixels per side of a thumbnail."""
TINY_SIZE = 64
"""Pixels of the shorter side below which the hash of an image is not reliable."""
HASH_IMAGE_SIZE = 32
"""Pixels per side of the image from which a hash is computed."""
HASH_FREQUENCIES = 8
"""Number of frequencies per axis in a hash."""
WORKING_SIZE = 160
"""Pixels per side of the resized image from which all else is computed; trims are whole pixels of it."""
TRIMS = (0, 4, 8)
"""Pixels of the resized image removed from each edge before hashing: none, 2.5 % and 5 %."""
BLANK_STD = 2.0
"""Standard deviation in gray levels below which an image has too little content to be compared."""

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PerceptualHash:
    """Hashes and thumbnail of one image."""

    hashes: tuple[int, ...]
    """One 64-bit hash for each of TRIMS."""
    thumbnail: Thumbnails
    """(T, T) gray."""
    tiny: bool
    """Whether its shorter side is below TINY_SIZE."""


@dataclass(frozen=True)
class PerceptualHashes:
    """Hashes and thumbnails of N images."""

    hashes: Hashes
    """(N, len(TRIMS))."""
    thumbnails: Thumbnails
    """(N, T, T) gray."""
    tiny: npt.NDArray[np.bool_]
    """(N,) whether the shorter side of the image is below TINY_SIZE."""

    @property
    def blank(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the image has nearly one shade, such as a photo of a lens cap."""
        blank: npt.NDArray[np.bool_] = self.thumbnails.std(axis=(1, 2)) < BLANK_STD
        return blank

    def where(self, selected: Sequence[bool]) -> "PerceptualHashes":
        """Return the hashes of the selected images; `selected` has one value per image."""
        mask = np.array(selected, dtype=np.bool_)
        return PerceptualHashes(self.hashes[mask], self.thumbnails[mask], self.tiny[mask])


def compute_hash(image: torch.Tensor) -> PerceptualHash:
    """Compute hashes and thumbnail of a decoded image, uint8 (3, H, W)."""
    resized = resize_tensor(image, (WORKING_SIZE, WORKING_SIZE)).float()
    grey = torch.tensordot(torch.tensor(LUMA), resized, dims=1).round().to(torch.uint8).numpy()
    hashes = tuple(
        perceptual_hash(_resize(grey[trim : WORKING_SIZE - trim, trim : WORKING_SIZE - trim], HASH_IMAGE_SIZE))
        for trim in TRIMS
    )
    return PerceptualHash(hashes, _resize(grey, THUMBNAIL_SIZE), tiny=min(image.shape[1:]) < TINY_SIZE)


def stack_hashes(images: Iterable[PerceptualHash]) -> PerceptualHashes:
    """Stack the hashes of several images to arrays."""
    every = list(images)
    return PerceptualHashes(
        np.array([image.hashes for image in every], dtype=np.uint64).reshape(-1, len(TRIMS)),
        np.array([image.thumbnail for image in every], dtype=np.uint8).reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE),
        np.array([image.tiny for image in every], dtype=np.bool_),
    )


def join_hashes(first: PerceptualHashes, second: PerceptualHashes) -> PerceptualHashes:
    """Concatenate the hashes of two sets of images."""
    return PerceptualHashes(
        np.concatenate([first.hashes, second.hashes]),
        np.concatenate([first.thumbnails, second.thumbnails]),
        np.concatenate([first.tiny, second.tiny]),
    )


def perceptual_hash(grey: npt.NDArray[np.uint8]) -> int:
    """Return the 64-bit pHash of gray (32, 32): which of its 8 x 8 lowest frequencies are above their median.

    The bits have the order of the `imagehash` library, the first one is the highest.

    References:
        C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.1.
    """
    frequencies = dctn(grey.astype(np.float64), type=2)[:HASH_FREQUENCIES, :HASH_FREQUENCIES]
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes())


def _resize(grey: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    resized = resize_tensor(torch.from_numpy(np.ascontiguousarray(grey))[None], (side, side))
    return np.asarray(resized[0].numpy())

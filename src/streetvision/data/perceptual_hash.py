"""What an image looks like, in a few bytes that survive scaling, re-encoding, a brighter light and a narrow crop.

Legend: N images, T = 64 pixels of a thumbnail's side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn

from streetvision.data.decode import resize_square
from streetvision.data.transforms.color import LUMA

THUMBNAIL = 64
"""Pixels of a thumbnail's side."""
HASHED = 32
"""Pixels of the side of what a hash is computed from."""
HASH_SIDE = 8
"""Frequencies of a hash in each direction."""
WORKING = 160
"""Pixels of the squashed image from which all else is made: its trims are whole pixels."""
TRIMS = (0, 4, 8)
"""Working pixels cut from each edge before a hash is taken: none, 2.5 % and 5 %."""
BLANK = 2.0
"""Standard deviation in grey levels below which a picture shows nothing by which to know it again."""

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PerceptualHash:
    """What one image looks like."""

    hashes: tuple[int, ...]
    """One 64-bit hash for each of TRIMS."""
    thumbnail: Thumbnails
    """(T, T) grey."""
    tiny: bool
    """Whether the image is smaller than its thumbnail, so that a hash of it says little."""


@dataclass(frozen=True)
class PerceptualHashes:
    """What N images look like."""

    hashes: Hashes
    """(N, len(TRIMS))."""
    thumbnails: Thumbnails
    """(N, T, T) grey."""
    tiny: npt.NDArray[np.bool_]
    """(N,) images smaller than a thumbnail."""

    @property
    def blank(self) -> npt.NDArray[np.bool_]:
        """(N,) images of one shade, such as a lens cap's."""
        blank: npt.NDArray[np.bool_] = self.thumbnails.std(axis=(1, 2)) < BLANK
        return blank

    def where(self, chosen: Sequence[bool]) -> "PerceptualHashes":
        """The looks of the images that are chosen, one truth value an image."""
        mask = np.array(chosen, dtype=np.bool_)
        return PerceptualHashes(self.hashes[mask], self.thumbnails[mask], self.tiny[mask])


def compute_hash(image: torch.Tensor) -> PerceptualHash:
    """The look of a decoded image, uint8 (3, H, W)."""
    grey = _grey(resize_square(image, WORKING))
    hashes = tuple(perceptual_hash(_resized(_trimmed(grey, trim), HASHED)) for trim in TRIMS)
    return PerceptualHash(hashes, _resized(grey, THUMBNAIL), tiny=min(image.shape[1:]) < THUMBNAIL)


def stack_hashes(looks: Iterable[PerceptualHash]) -> PerceptualHashes:
    """Many looks as arrays."""
    every = list(looks)
    return PerceptualHashes(
        np.array([look.hashes for look in every], dtype=np.uint64).reshape(-1, len(TRIMS)),
        np.array([look.thumbnail for look in every], dtype=np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL),
        np.array([look.tiny for look in every], dtype=np.bool_),
    )


def join_hashes(first: PerceptualHashes, second: PerceptualHashes) -> PerceptualHashes:
    """The looks of some images, and of others behind them."""
    return PerceptualHashes(
        np.concatenate([first.hashes, second.hashes]),
        np.concatenate([first.thumbnails, second.thumbnails]),
        np.concatenate([first.tiny, second.tiny]),
    )


def perceptual_hash(grey: npt.NDArray[np.uint8]) -> int:
    """The 64-bit pHash of grey (32, 32): which of its 8 x 8 lowest frequencies lie above their median.

    C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.1; the bits are
    in the order of the `imagehash` library, the first one the highest.
    """
    frequencies = dctn(grey.astype(np.float64), type=2)[:HASH_SIDE, :HASH_SIDE]
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes())


def _grey(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """uint8 (3, H, W) -> (H, W)."""
    grey = torch.tensordot(torch.tensor(LUMA), image.float(), dims=1).round().to(torch.uint8)
    return np.asarray(grey.numpy())


def _trimmed(grey: npt.NDArray[np.uint8], pixels: int) -> npt.NDArray[np.uint8]:
    return grey[pixels : WORKING - pixels, pixels : WORKING - pixels]


def _resized(grey: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    resized = resize_square(torch.from_numpy(np.ascontiguousarray(grey))[None], side)
    return np.asarray(resized[0].numpy())

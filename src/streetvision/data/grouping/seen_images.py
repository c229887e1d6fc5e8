"""The images that a bundle was made from, as hashes: enough to recognise copies of them, far too few to show them.

A record is 64 bytes: the perceptual hashes at each of TRIMS, 256 bits of the thumbnail, and the split.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import RADIUS
from streetvision.data.grouping.hamming import Hashes, pairs_within
from streetvision.data.grouping.perceptual_hash import TRIMS, PerceptualHashes, Thumbnails

SEEN_IMAGES = "seen_images.bin"
"""Name of the file in a run and in a bundle."""
SPLITS = tuple(Split)
FREQUENCIES = 16
"""Frequencies per axis in the detail bits."""
DETAIL_WORDS = FREQUENCIES**2 // 64
MAX_DETAIL_DISTANCE = 25
"""Detail bits, of 256, in which copies differ at most. On 324 street photographs, scaled, re-encoded and brightened
copies differed in at most 22, and different photographs of one camera in at least 30."""
WORDS = len(TRIMS) + DETAIL_WORDS + 1


@dataclass(frozen=True)
class SeenImages:
    """Hashes and splits of N images."""

    hashes: Hashes
    """(N, len(TRIMS))."""
    details: Hashes
    """(N, DETAIL_WORDS)."""
    roles: npt.NDArray[np.uint64]
    """(N,) position of the split in SPLITS."""

    def to_bytes(self) -> bytes:
        """Return the content of SEEN_IMAGES."""
        return np.column_stack([self.hashes, self.details, self.roles]).astype("<u8").tobytes()

    def count_copies(self, images: PerceptualHashes) -> Counter[Split]:
        """Return how many of `images` are copies of images of each split; blank and tiny images are not compared.

        An image that is a copy of images of several splits counts for the first of TRAIN, VAL_SELECT, VAL_CALIB and
        VAL_TEST.
        """
        usable = np.flatnonzero(~images.tiny & ~images.blank)
        pairs = pairs_within(images.hashes[usable, 0], RADIUS, others=self.hashes[:, 0])
        details = detail_bits(images.thumbnails[usable])
        distance = np.bitwise_count(details[pairs[:, 0]] ^ self.details[pairs[:, 1]]).sum(axis=1)
        found: dict[int, int] = {}
        for image, seen in pairs[distance <= MAX_DETAIL_DISTANCE].tolist():
            role = int(self.roles[seen])
            found[image] = min(role, found.get(image, role))
        return Counter(SPLITS[role] for role in found.values())


def record_images(images: PerceptualHashes, roles: Sequence[Split]) -> SeenImages:
    """Return the record of images with their splits."""
    positions = np.array([SPLITS.index(role) for role in roles], dtype=np.uint64)
    return SeenImages(images.hashes, detail_bits(images.thumbnails), positions)


def parse_seen_images(data: bytes) -> SeenImages:
    """Return the record in the content of SEEN_IMAGES; raises ArtifactError if it is not valid."""
    if len(data) % (8 * WORDS):
        raise ArtifactError(f"{SEEN_IMAGES} has {len(data)} bytes, not a multiple of {8 * WORDS}")
    table = np.frombuffer(data, dtype="<u8").astype(np.uint64).reshape(-1, WORDS)
    if (table[:, -1] >= len(SPLITS)).any():
        raise ArtifactError(f"{SEEN_IMAGES} names a split that does not exist")
    return SeenImages(table[:, : len(TRIMS)], table[:, len(TRIMS) : -1], table[:, -1])


def detail_bits(thumbnails: Thumbnails) -> Hashes:
    """Return (N, DETAIL_WORDS): which of the lowest frequencies of each thumbnail are above their median."""
    words = np.empty((len(thumbnails), DETAIL_WORDS), dtype=np.uint64)
    for number, thumbnail in enumerate(thumbnails):
        frequencies = dctn(thumbnail.astype(np.float32), type=2)[:FREQUENCIES, :FREQUENCIES]
        words[number] = np.packbits(frequencies > np.median(frequencies)).view(">u8")
    return words

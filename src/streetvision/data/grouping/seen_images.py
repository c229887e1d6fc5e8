"""The images that a bundle was made from, as hashes: enough to recognize copies of them, far too few to show them.

A record is 312 bytes: the perceptual hashes at each of TRIMS, the detail bits of the thumbnail at each of DETAIL_TRIMS,
and the split. 10,000 images take 3.1 MB. Found are copies that are scaled, encoded again, brighter or darker, or
cropped by up to 5 % at every edge. A crop at one or two edges only moves the details and is rarely found, unlike in
`copies`, which needs thumbnails of 9 kB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dct

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import RADIUS
from streetvision.data.grouping.hamming import Hashes, Positions, pairs_within
from streetvision.data.grouping.near_duplicates import trim_matrix
from streetvision.data.grouping.perceptual_hash import THUMBNAIL_SIZE, TRIMS, PerceptualHashes, Thumbnails

SEEN_IMAGES = "seen_images.bin"
"""Name of the file in a run and in a bundle."""
SPLITS = tuple(Split)
FREQUENCIES = 20
"""Frequencies per axis in the detail bits."""
DETAIL_TRIMS = (0, 2, 4, 6, 8)
"""As TRIMS, in finer steps: detail bits change more than hashes when the crop is another one."""
DETAIL_WORDS = -(-(FREQUENCIES**2) // 64)
"""64-bit words that hold the detail bits of one trim. The last bits are 0."""
MAX_DETAIL_DISTANCE = 46
"""Detail bits, of 400, in which copies differ at most. Of 324 street photographs by one kind of camera, different ones
differed in at least 50."""
WORDS = len(TRIMS) + len(DETAIL_TRIMS) * DETAIL_WORDS + 1


@dataclass(frozen=True)
class SeenImages:
    """Hashes and splits of N images."""

    hashes: Hashes
    """(N, len(TRIMS))."""
    details: Hashes
    """(N, len(DETAIL_TRIMS), DETAIL_WORDS)."""
    roles: npt.NDArray[np.uint64]
    """(N,) position of the split in SPLITS."""

    def to_bytes(self) -> bytes:
        """Return the content of SEEN_IMAGES."""
        details = self.details.reshape(len(self.details), len(DETAIL_TRIMS) * DETAIL_WORDS)
        return np.column_stack([self.hashes, details, self.roles]).astype("<u8").tobytes()

    def find_copies(self, images: PerceptualHashes) -> dict[int, Split]:
        """Return the position of each of `images` that is a copy of a recorded one, with the split of that image.

        Blank and tiny images are not compared. An image that is a copy of images of several splits has the first of
        TRAIN, VAL_SELECT, VAL_CALIB and VAL_TEST.
        """
        usable = np.flatnonzero(~images.tiny & ~images.blank)
        hashes, details = images.hashes[usable], detail_bits(images.thumbnails[usable])
        pairs = [pairs_within(hashes[:, 0], RADIUS, others=self.hashes[:, view]) for view in range(len(TRIMS))]
        pairs += [pairs_within(hashes[:, view], RADIUS, others=self.hashes[:, 0]) for view in range(1, len(TRIMS))]
        found: dict[int, int] = {}
        candidates = np.unique(np.concatenate(pairs), axis=0)
        for image, seen in candidates[self._details_agree(candidates, details)].tolist():
            position, role = int(usable[image]), int(self.roles[seen])
            found[position] = min(role, found.get(position, role))
        return {position: SPLITS[role] for position, role in sorted(found.items())}

    def _details_agree(self, pairs: Positions, details: Hashes) -> npt.NDArray[np.bool_]:
        """(P,) whether the whole of one image of a pair has the details of the whole or a trim of the other."""
        agree = np.zeros(len(pairs), dtype=np.bool_)
        first, second = pairs.T
        for view in range(len(DETAIL_TRIMS)):
            for a, b in ((0, view), (view, 0)):
                distance = np.bitwise_count(details[first, a] ^ self.details[second, b]).sum(axis=1, dtype=np.int64)
                agree |= distance <= MAX_DETAIL_DISTANCE
        return agree


def record_images(images: PerceptualHashes, roles: Sequence[Split]) -> SeenImages:
    """Return the record of images with their splits."""
    positions = np.array([SPLITS.index(role) for role in roles], dtype=np.uint64)
    return SeenImages(images.hashes, detail_bits(images.thumbnails), positions)


def parse_seen_images(data: bytes) -> SeenImages:
    """Return the record in the content of SEEN_IMAGES; raises ArtifactError if it is not valid."""
    if len(data) % (8 * WORDS):
        raise ArtifactError(
            f"{SEEN_IMAGES} has {len(data)} bytes, not a multiple of {8 * WORDS}",
            "if an earlier version wrote it, prepare the data and export the bundle again",
        )
    table = np.frombuffer(data, dtype="<u8").astype(np.uint64).reshape(-1, WORDS)
    if (table[:, -1] >= len(SPLITS)).any():
        raise ArtifactError(f"{SEEN_IMAGES} names a split that does not exist")
    details = table[:, len(TRIMS) : -1].reshape(-1, len(DETAIL_TRIMS), DETAIL_WORDS)
    return SeenImages(table[:, : len(TRIMS)], details, table[:, -1])


def detail_bits(thumbnails: Thumbnails) -> Hashes:
    """Return (N, len(DETAIL_TRIMS), DETAIL_WORDS): which low frequencies of each trim are above their median."""
    words = np.empty((len(thumbnails), len(DETAIL_TRIMS), DETAIL_WORDS), dtype=np.uint64)
    frequencies = dct(np.eye(THUMBNAIL_SIZE, dtype=np.float32), axis=0)[:FREQUENCIES]
    transforms = [frequencies @ trim_matrix(trim, THUMBNAIL_SIZE) for trim in DETAIL_TRIMS]
    bits = np.zeros(64 * DETAIL_WORDS, dtype=np.bool_)
    for number, thumbnail in enumerate(thumbnails.astype(np.float32)):
        for view, transform in enumerate(transforms):
            values = (transform @ thumbnail @ transform.T).ravel()
            bits[: values.size] = values > np.median(values)
            words[number, view] = np.packbits(bits).view(">u8")
    return words

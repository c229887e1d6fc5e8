"""Cache of small JPEG copies of the training images, which decode faster than the originals.

A copy is named after the digest of the original's bytes, the size and the JPEG quality. So it is shared by all runs and
all paths with the same content. Existing copies are not made again, so an interrupted build resumes.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_row
from streetvision.io.atomic import write_bytes_atomic
from streetvision.io.resize_tensor import resize_tensor

JPEG_QUALITY = 90


class ImageCache:
    """Copies whose shorter side has `pixels` pixels, in `folder`."""

    def __init__(self, folder: Path, *, pixels: int) -> None:
        self.folder, self.pixels = folder, pixels

    def path(self, row: Row, *, root: Path) -> Path:
        """Return the path of the copy, or of the original if a copy would not be smaller."""
        if min(row.width, row.height) <= self.pixels:
            return root / row.path
        return self.folder / row.sha256[:2] / f"{row.sha256}-{self.pixels}-{JPEG_QUALITY}.jpg"

    def build(self, rows: Sequence[Row], *, root: Path, limits: DecodeLimits, workers: int, progress: Progress) -> int:
        """Make the missing copies with `workers` threads.

        Returns:
            The number of copies made.

        Raises:
            UndecodableImage: An original cannot be read, or has changed; the message names its path.
        """
        # Rows with the same content share a copy.
        originals = {self.path(row, root=root): row for row in rows}
        missing = [(row, copy) for copy, row in originals.items() if copy != root / row.path and not copy.is_file()]
        # Decoding, resizing and encoding release the GIL, so threads are enough.
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            results = pool.map(lambda pair: self._make_copy(root, pair[0], pair[1], limits), missing)
            for _ in progress.track(results, total=len(missing), label="cache"):
                pass
        return len(missing)

    def _make_copy(self, root: Path, row: Row, copy: Path, limits: DecodeLimits) -> None:
        image = read_row(root, row, limits=limits)
        height, width = image.shape[-2:]
        shorter = min(height, width)
        small = resize_tensor(image, (height * self.pixels // shorter, width * self.pixels // shorter))
        jpeg = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(small.permute(1, 2, 0).numpy())).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        write_bytes_atomic(copy, jpeg.getvalue())

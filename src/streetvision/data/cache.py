"""Small JPEGs of the training images, made once: decoding them is several times quicker than the originals.

A copy is named after the digest of the original's bytes, the size and the quality, so it serves every run and every
path of the same content; what is there already is not made again, so an interrupted build goes on.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import read_image
from streetvision.io.atomic import write_bytes_atomic

QUALITY = 90


class ImageCache:
    """Copies whose shorter side is `pixels`, under `folder`."""

    def __init__(self, folder: Path, *, pixels: int) -> None:
        self.folder, self.pixels = folder, pixels

    def path(self, row: Row, *, root: Path) -> Path:
        """Where to read `row`: its copy, or the original when that is no larger than a copy would be."""
        if min(row.width, row.height) <= self.pixels:
            return root / row.path
        return self.folder / row.sha256[:2] / f"{row.sha256}-{self.pixels}-{QUALITY}.jpg"

    def build(self, rows: Sequence[Row], *, root: Path, limits: DecodeLimits, workers: int, progress: Progress) -> int:
        """Make the copies that are missing, `workers` at a time; returns how many were made.

        Raises UndecodableImage, which names the path, for an original that cannot be read by now.
        """
        wanted = {self.path(row, root=root): root / row.path for row in rows}
        missing = [(original, copy) for copy, original in wanted.items() if copy != original and not copy.is_file()]
        # Threads, because decoding, resizing and encoding all let go of the interpreter.
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            made = pool.map(lambda pair: self._make(pair[0], pair[1], limits), missing)
            for _ in progress.track(made, total=len(missing), label="cache"):
                pass
        return len(missing)

    def _make(self, original: Path, copy: Path, limits: DecodeLimits) -> None:
        image = read_image(original, limits=limits)
        small = F.resize(image, [self.pixels], interpolation=InterpolationMode.BILINEAR, antialias=True)
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(small.permute(1, 2, 0).numpy())).save(written, "JPEG", quality=QUALITY)
        write_bytes_atomic(copy, written.getvalue())

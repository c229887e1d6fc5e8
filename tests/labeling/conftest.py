"""A queue of ten tiny photographs, a store, and the application."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.labels.store import LabelStore
from streetvision.labeling.queue import Queue, QueuedImage
from streetvision.labeling.session import Session

NAMES = ("None", "Roadwork")


def photo(path, number, size=(64, 48)):
    noise = np.random.default_rng(number).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, quality=90)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def queue(tmp_path):
    images = []
    for number in range(10):
        path = tmp_path / f"{number}.jpg"
        queue = "random" if number == 4 else "uncertain"
        images.append(QueuedImage(photo(path, number), str(path), None, queue, "a reason", 0.25, "f" * 64))
    return Queue(tuple(images), 7)


@pytest.fixture
def open_session(queue, tmp_path):
    def open_(labeler="ann", **options):
        store = LabelStore(tmp_path / "labels" / "labels.parquet", NAMES)
        return Session(queue, store, labeler=labeler, limits=DEFAULT_LIMITS, **options)

    return open_

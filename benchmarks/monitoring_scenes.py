"""Drawn scenes with a change, as predictions that `streetvision monitor` reads."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from streetvision.bundle.predictor import Predictor
from streetvision.bundle.reference import decode_components
from streetvision.monitoring.rows import PredictionBatch
from streetvision.synthetic.scenes import SceneConfig, draw_scene

Change = Callable[[Image.Image, int], Image.Image]


def _fog(image: Image.Image, _: int) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, (200, 205, 210)), 0.4)


def _same(image: Image.Image, _: int) -> Image.Image:
    return image


DEFAULT = SceneConfig()
CHANGES: Mapping[str, tuple[SceneConfig, Change]] = {
    "none": (DEFAULT, _same),
    "night": (DEFAULT, lambda image, _: ImageEnhance.Brightness(image).enhance(0.45)),
    "fog": (DEFAULT, _fog),
    "blur": (DEFAULT, lambda image, _: image.filter(ImageFilter.GaussianBlur(1.2))),
    "prevalence .1": (SceneConfig(positive_fraction=0.1), _same),
    "smaller roadwork": (SceneConfig(area_fraction=(0.005, 0.03)), _same),
    "camera of half the size": (DEFAULT, lambda image, _: image.resize((image.width // 2, image.height // 2))),
    "JPEG quality 25": (DEFAULT, lambda image, _: _encoded(image, 25)),
}
"""Name -> how scenes are drawn, and what happens to an image."""


def _encoded(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def draw_stream(
    predictor: Predictor, change: str, *, count: int, first_seed: int
) -> tuple[PredictionBatch, NDArray[np.int64]]:
    """Draw scenes with a change and predict them; return the predictions and the labels."""
    config, alter = CHANGES[change]
    labels, files = [], []
    for seed in range(first_seed, first_seed + count):
        scene = draw_scene(seed, config)
        labels.append(scene.label)
        content = io.BytesIO()
        alter(Image.fromarray(scene.image), seed).save(content, "JPEG", quality=90)
        files.append(content.getvalue())
    predictions = predictor.predict(files)
    signals = [prediction.signals for prediction in predictions if prediction.signals is not None]
    assert predictor.reference is not None
    quality = [[np.nan if value is None else value for value in signal.quality] for signal in signals]
    batch = PredictionBatch(
        [f"{change}-{seed}" for seed in range(count)],
        [None] * count,
        np.array([signal.margin for signal in signals]),
        np.array([prediction.probability for prediction in predictions]),
        np.array([prediction.decision for prediction in predictions], dtype=np.int64),
        decode_components([signal.features for signal in signals], len(predictor.reference.scale)),
        np.array(quality, dtype=np.float64),
        np.full(count, np.nan),
        0,
    )
    return batch, np.array(labels, dtype=np.int64)

"""`streetvision dev bench growth`: how cost grows with images, views, thresholds and resamples."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from benchmarks.bench_statistics import scored_rows
from benchmarks.bench_views import some_views, together
from benchmarks.figures import Curve, Figure, interleaved_medians
from streetvision.contracts.progress import Progress
from streetvision.data.augmentation import get_val_transforms
from streetvision.data.decode import read_image
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.eval.thresholds import select_threshold_max_mcc
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.synthetic.scenes import SceneConfig, write_scenes

IMAGES, BATCH = (16, 32, 64, 128), 16
VIEWS, OF_VIEWS = (2, 4, 8, 16), 8
"""Views an image, and images."""
THRESHOLDS = (100_000, 300_000, 1_000_000, 3_000_000)
RESAMPLES, ROWS = (250, 500, 1000, 2000, 4000), 10_000
REPEATS = 3


def bench_growth(progress: Progress) -> list[Figure]:
    """An exponent for each of the four: 1 is linear."""
    classifier = load_classifier(
        ModelConfig(backbone=BackboneConfig(source="embedded", name="dinov3_scenes"), pooling="cls_mean")
    ).eval()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        write_scenes(Path(name), SceneConfig(count=IMAGES[-1]), progress)
        return [_images(classifier, sorted(Path(name).rglob("*.jpg"))), _views(classifier), _thresholds(), _resamples()]


def _images(classifier: Classifier, paths: list[Path]) -> Figure:
    transform = get_val_transforms(image_size=classifier.description.image_size)

    def predict(count: int) -> None:
        for start in range(0, count, BATCH):
            classifier(torch.stack([transform(read_image(path)) for path in paths[start : start + BATCH]]))

    return _grown("images, from files to logits", IMAGES, lambda count: partial(predict, count))


def _views(classifier: Classifier) -> Figure:
    drawn = {count: some_views(OF_VIEWS, count, classifier.description.image_size) for count in VIEWS}
    return _grown(f"views of {OF_VIEWS} images", VIEWS, lambda count: partial(together, classifier, drawn[count]))


def _thresholds() -> Figure:
    """As many cuts as rows: no two have the same score."""
    drawn = {count: scored_rows(count) for count in THRESHOLDS}
    return _grown(
        "thresholds", THRESHOLDS, lambda count: partial(select_threshold_max_mcc, drawn[count][1], drawn[count][0])
    )


def _resamples() -> Figure:
    labels, logits = scored_rows(ROWS)
    predictions = Predictions(labels, expit(logits[:, 1].astype(np.float64)))
    return _grown(
        f"resamples of {ROWS:,} rows",
        RESAMPLES,
        lambda count: partial(bootstrap_intervals, predictions, Resampling(n_resamples=count)),
    )


def _grown(of: str, sizes: tuple[int, ...], at: Callable[[int], Callable[[], object]]) -> Figure:
    curve = Curve(of, sizes, tuple(interleaved_medians([at(size) for size in sizes], repeats=REPEATS)))
    ends = f"{sizes[0]:,} to {sizes[-1]:,}, {curve.seconds[0]:.2g} to {curve.seconds[-1]:.2g} s"
    return Figure(f"{of}: {ends}", curve.exponent, "linear", 1.0, unit="exponent", curve=curve)

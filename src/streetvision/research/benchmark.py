"""Benchmarks: each figure beside the peer or the floor that it is judged against, both measured in the same run."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streetvision.contracts.errors import unknown_name
from streetvision.contracts.progress import Progress, Silent

REPEATS = 5


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it is compared with."""

    name: str
    seconds: float
    """Median over the repeats."""
    beside: str
    """What `beside_seconds` is the time of."""
    beside_seconds: float
    """Median over the same repeats, taken in turn."""

    @property
    def ratio(self) -> float:
        """This figure over the one beside it."""
        return self.seconds / self.beside_seconds


def run_benchmarks(section: str, progress: Progress) -> list[Figure]:
    """The figures of a section of SECTIONS; raises ConfigError when there is none of that name."""
    if section not in SECTIONS:
        raise unknown_name("benchmark section", section, SECTIONS)
    return SECTIONS[section](progress)


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds of two functions that run in turn, so that a drifting machine slows both; one warm-up each."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, times in zip((ours, theirs), taken, strict=True):
            started = time.perf_counter()
            function()
            if repeat:
                times.append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def bench_startup(_: Progress) -> list[Figure]:
    """The help text, against an interpreter that starts and ends."""

    def python(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603

    ours, floor = in_turn(python("-m", "streetvision", "--help"), python("-c", "pass"))
    return [Figure("streetvision --help", ours, "python -c pass", floor)]


def bench_training(progress: Progress) -> list[Figure]:
    """Ten epochs of a head on cached features, against computing the features once."""
    import torch

    from streetvision.data.datamodule import FeatureBatches, LoaderConfig
    from streetvision.data.index import list_images
    from streetvision.data.scan import scan_images
    from streetvision.data.scenes import SceneConfig, write_scenes
    from streetvision.models.backbone import BackboneConfig
    from streetvision.models.module import HeadConfig, ModelConfig, load_classifier, make_head
    from streetvision.training.config import TrainingConfig
    from streetvision.training.features import FeatureCache
    from streetvision.training.trainer import fit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "scenes", SceneConfig(count=512), progress)
        listing = list_images(str(folder / "scenes"), class_names=("None", "Roadwork"), import_to=folder)
        rows = scan_images(listing, class_names=("None", "Roadwork")).index.rows
        classifier = load_classifier(
            ModelConfig(backbone=BackboneConfig(source="embedded", name="dinov3_scenes"), pooling="cls_mean")
        )

        def compute_features() -> tuple[torch.Tensor, torch.Tensor]:
            with tempfile.TemporaryDirectory() as empty:
                cache = FeatureCache(Path(empty), classifier, loader=LoaderConfig(), progress=progress)
                return cache.features(rows, root=listing.root, name="bench")

        features, labels = compute_features()
        config = TrainingConfig(epochs=10, batch_size=256)

        def ten_epochs() -> None:
            torch.manual_seed(0)
            batches = FeatureBatches(features, labels, batch_size=256, seed=0)
            head = make_head(HeadConfig(), features.shape[1])
            fit(head, batches, FeatureBatches(features, labels, batch_size=4096), config=config, progress=Silent())

        ours, beside = in_turn(ten_epochs, compute_features)
    return [Figure("ten epochs of the head, 512 images", ours, "features of the same images, once", beside)]


SECTIONS: Mapping[str, Callable[[Progress], list[Figure]]] = {
    "startup": bench_startup,
    "training": bench_training,
}
"""Section -> what measures it."""

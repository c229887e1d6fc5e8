"""Benchmarks: each figure beside the peer or the floor that it is judged against, both measured in the same run."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from streetvision.contracts.errors import unknown_name
from streetvision.contracts.progress import Progress, Silent
from streetvision.research.figures import Figure, in_turn


def run_benchmarks(section: str, progress: Progress) -> list[Figure]:
    """The figures of a section of SECTIONS; raises ConfigError when there is none of that name."""
    if section not in SECTIONS:
        raise unknown_name("benchmark section", section, SECTIONS)
    return SECTIONS[section](progress)


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
    from streetvision.training.trainer import Following, fit

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
            fit(
                head,
                batches,
                FeatureBatches(features, labels, batch_size=4096),
                config=config,
                following=Following(Silent()),
            )

        ours, beside = in_turn(ten_epochs, compute_features)
    return [Figure("ten epochs of the head, 512 images", ours, "features of the same images, once", beside)]


def bench_statistics(progress: Progress) -> list[Figure]:
    """Thresholds and intervals, against scikit-learn and SciPy."""
    from streetvision.research import bench_statistics

    return bench_statistics.bench_statistics(progress)


def bench_calibration(progress: Progress) -> list[Figure]:
    """Calibration and risk control, against scikit-learn, netcal and MAPIE."""
    from streetvision.research import bench_calibration

    return bench_calibration.bench_calibration(progress)


def bench_data(progress: Progress) -> list[Figure]:
    """The training loader, against ImageFolder and against its own decoder."""
    from streetvision.research import bench_data

    return bench_data.bench_data(progress)


SECTIONS: Mapping[str, Callable[[Progress], list[Figure]]] = {
    "calibration": bench_calibration,
    "data": bench_data,
    "startup": bench_startup,
    "statistics": bench_statistics,
    "training": bench_training,
}
"""Section -> what measures it."""

"""Benchmarks: each figure beside the peer or the floor that it is judged against, both measured in the same run."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from streetvision.contracts.errors import unknown_name
from streetvision.contracts.progress import Progress
from streetvision.research.figures import Figure, in_turn


def run_benchmarks(section: str, progress: Progress, page: Path | None = None) -> list[Figure]:
    """The figures of a section of SECTIONS, which are also written into `page` where one is given.

    Raises ConfigError when there is no section of that name, or no place for it in the page.
    """
    if section not in SECTIONS:
        raise unknown_name("benchmark section", section, SECTIONS)
    if page is None:
        return SECTIONS[section](progress)
    from streetvision.research.bench_page import check_place, write_figures  # loads torch

    check_place(page, section)
    figures = SECTIONS[section](progress)
    write_figures(page, section, figures)
    return figures


def bench_startup(_: Progress) -> list[Figure]:
    """The help text, against an interpreter that starts and ends."""

    def python(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603

    ours, floor = in_turn(python("-m", "streetvision", "--help"), python("-c", "pass"))
    return [Figure("streetvision --help", ours, "python -c pass", floor)]


def bench_training(progress: Progress) -> list[Figure]:
    """A head on features, adapters against a loop by hand, a contrast against lightly's."""
    from streetvision.research import bench_training

    return bench_training.bench_training(progress)


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


def bench_growth(progress: Progress) -> list[Figure]:
    """How cost grows with images, views, thresholds and resamples, against linear growth."""
    from streetvision.research import bench_growth

    return bench_growth.bench_growth(progress)


def bench_inference(progress: Progress) -> list[Figure]:
    """From image files to answers in every runtime, against transformers' pipeline."""
    from streetvision.research import bench_inference

    return bench_inference.bench_inference(progress)


def bench_gpu(progress: Progress) -> list[Figure]:
    """Steps of a ViT-L/16 on a CUDA device, against plain fp32 and against the device's own pace."""
    from streetvision.research import bench_gpu

    return bench_gpu.bench_gpu(progress)


def bench_pipeline(progress: Progress) -> list[Figure]:
    """From images to an evaluated bundle, against a loose script."""
    from streetvision.research import bench_pipeline

    return bench_pipeline.bench_pipeline(progress)


def bench_views(progress: Progress) -> list[Figure]:
    """Many views of an image in one call, against a loop over the views."""
    from streetvision.research import bench_views

    return bench_views.bench_views(progress)


def bench_reward(_: Progress) -> list[Figure]:
    """The subnet's reward of 1,000 streams of 1,000 answers, against drawing these streams."""
    import numpy as np

    from streetvision.eval.reward import Challenges, standing

    labels = np.repeat([0, 1], 500)

    def draw() -> Challenges:
        return Challenges.draw(labels, streams=1000, steps=1000, seed=0)

    challenges = draw()
    ours, floor = in_turn(lambda: standing(challenges.rewards(labels)), draw)
    return [Figure("reward and score of 1,000 streams x 1,000 challenges", ours, "drawing them", floor)]


SECTIONS: Mapping[str, Callable[[Progress], list[Figure]]] = {
    "calibration": bench_calibration,
    "data": bench_data,
    "gpu": bench_gpu,
    "growth": bench_growth,
    "inference": bench_inference,
    "pipeline": bench_pipeline,
    "reward": bench_reward,
    "startup": bench_startup,
    "statistics": bench_statistics,
    "training": bench_training,
    "views": bench_views,
}
"""Section -> what measures it."""

"""Replay of labeling: labels of a data set are revealed in the order of a queue.

    python -m benchmarks.bench_labeling SETTINGS

For example, with the folder of real images in D:

    python -m benchmarks.bench_labeling data.root=$D/pothole_br_df 'data.class_names=[none,pothole]' model=deit_tiny \
        model.backbone.weights=$D/deit_tiny_patch16_224/model.safetensors --seeds 10
    python -m benchmarks.bench_labeling scenes.count=1600

In each seed, 70 % of the groups are the pool and the others the test. A logistic regression on frozen features is
fitted to the labels after each batch, and its MCC on the test is recorded up to 200 labels. The area is the mean of
these MCCs. `margin` takes the images nearest to the decision; for two classes it is the uncertainty and the margin
sampling of modAL and scikit-activeml. Its first labels are drawn at random, as theirs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.split_contracts import RANDOM_QUEUE, Index
from streetvision.data.splitting.partition import assign_folds, unit_name
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.labeling.queue import MIXED, Candidate, plan_queue
from streetvision.labeling.strategies import STRENGTH, FloatArray, reduce_features
from streetvision.models.module import load_classifier
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.scan_data import scan_without_splits
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.probe_head import FeatureReader
from streetvision.synthetic.scenes import write_scenes
from streetvision.training.features import FeatureCache

LABELS, BATCH = 200, 10
ENOUGH = 0.95
"""Share of the MCC with all labels of the pool that the labels needed are counted for."""
Choose = Callable[[list[Candidate], FloatArray, int], list[tuple[int, str]]]
"""Positions of the next images, each with its queue, from candidates (N,), features (N, P) and a seed."""


def main() -> None:
    """Print the area of each strategy, and its difference to random draws."""
    given = parse_arguments(__doc__)
    with TemporaryDirectory() as name:
        index, features = scan_features(given.settings, Path(name))
    curves: dict[str, list[FloatArray]] = {strategy: [] for strategy in STRATEGIES}
    full: list[float] = []
    for seed in range(given.seeds):
        test = np.array(assign_folds(index.rows, 10, seed=seed)) < 3
        full.append(_mcc(features, index, np.flatnonzero(~test).tolist(), test))
        for strategy, choose in STRATEGIES.items():
            curves[strategy].append(_replay(index, features, test, choose, seed))
        sys.stderr.write(f"seed {seed}: {', '.join(f'{s} {c[-1].mean():.3f}' for s, c in curves.items())}\n")
    enough = ENOUGH * float(np.mean(full))
    sys.stdout.write(f"MCC with all labels of the pool: {np.mean(full):.3f}\n")
    for strategy, found in curves.items():
        mean = np.mean(found, axis=0)
        needed = int(np.argmax(mean >= enough) + 1) * BATCH if (mean >= enough).any() else None
        difference = np.mean(found, axis=1) - np.mean(curves[RANDOM_QUEUE], axis=1)
        error = difference.std(ddof=1) / np.sqrt(len(difference)) * student_t.ppf(0.975, len(difference) - 1)
        low, high = difference.mean() - error, difference.mean() + error
        sys.stdout.write(
            f"{strategy}: area {mean.mean():.3f}, difference to random {difference.mean():+.3f} "
            f"[{low:+.3f}, {high:+.3f}], MCC at {LABELS} labels {mean[-1]:.3f}, "
            f"labels for {ENOUGH:.0%} of all: {needed or f'more than {LABELS}'}\n"
        )


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The settings of the data, and the number of seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="as for streetvision train")
    parser.add_argument("--seeds", type=int, default=10)
    return parser.parse_args()


def scan_features(settings: Sequence[str], folder: Path) -> tuple[Index, FloatArray]:
    """The images of a data set with their frozen features (N, P)."""
    config, console = compose_config(settings), Console(silent=True)
    if config.data.root is None:
        write_scenes(folder / "scenes", config.scenes, console)
        settings = [s for s in settings if not s.startswith("scenes.")]
        config = compose_config([*settings, f"data.root={folder / 'scenes'}"])
    index = scan_without_splits(config, ArtifactSchema(folder / "scan"), console).index
    classifier = load_classifier(config.model, input_size(config.model, index.rows))
    reader = FeatureReader.of(classifier.backbone, config.model)
    cache = FeatureCache(folder / "features", reader.classifier, loader=config.loader, progress=console)
    features, _ = cache.features(index.rows, root=index.root, name="all")
    return index, reduce_features(features.numpy())


def _replay(index: Index, features: FloatArray, test: NDArray[np.bool_], choose: Choose, seed: int) -> FloatArray:
    """MCC on the test after each batch of labels."""
    pool = np.flatnonzero(~test).tolist()
    rows = [index.rows[i] for i in pool]
    candidates = [Candidate(row.sha256, row.path, unit_name(row)) for row in rows]
    curve = []
    for step in range(LABELS // BATCH):
        for position, queue in choose(candidates, features[pool], seed * 1000 + step):
            candidates[position] = replace(candidates[position], label=rows[position].label, queue=queue)
        labeled = [pool[i] for i, candidate in enumerate(candidates) if candidate.label is not None]
        curve.append(_mcc(features, index, labeled, test))
    return np.array(curve)


def _planned(strategy: str) -> Choose:
    """The next images by a queue of `streetvision label`, which is planned again after each batch."""

    def choose(candidates: list[Candidate], features: FloatArray, seed: int) -> list[tuple[int, str]]:
        position = {candidate.sha256: i for i, candidate in enumerate(candidates)}
        left = LABELS - sum(candidate.label is not None for candidate in candidates)
        queue = plan_queue(candidates, features, strategy=strategy, count=left, seed=seed)
        return [(position[image.sha256], image.queue) for image in queue.images[:BATCH]]

    return choose


def _margin(candidates: list[Candidate], features: FloatArray, seed: int) -> list[tuple[int, str]]:
    """The images nearest to the decision of a classifier on the labels so far."""
    labeled = [i for i, candidate in enumerate(candidates) if candidate.label is not None]
    unlabeled = [i for i, candidate in enumerate(candidates) if candidate.label is None]
    labels = [candidates[i].label for i in labeled]
    if len(set(labels)) < 2:
        drawn = np.random.default_rng(seed).permutation(unlabeled)[:BATCH]
        return [(int(i), RANDOM_QUEUE) for i in drawn]
    scale = np.sqrt(np.square(features[labeled]).sum(axis=1).mean())
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
    model.fit(features[labeled] / scale, labels)
    distance = np.abs(model.decision_function(features[unlabeled] / scale))
    return [(unlabeled[i], "uncertain") for i in np.argsort(distance, kind="stable")[:BATCH]]


STRATEGIES: dict[str, Choose] = {
    RANDOM_QUEUE: _planned(RANDOM_QUEUE),
    MIXED: _planned(MIXED),
    "uncertain": _planned("uncertain"),
    "margin": _margin,
}


def _mcc(features: FloatArray, index: Index, labeled: list[int], test: NDArray[np.bool_]) -> float:
    labels = np.array([row.label for row in index.rows])
    if len(set(labels[labeled].tolist())) < 2:
        return 0.0
    scale = np.sqrt(np.square(features[labeled]).sum(axis=1).mean())
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
    model.fit(features[labeled] / scale, labels[labeled])
    return float(mcc(confusion_counts(labels[test], model.predict(features[test] / scale) == 1)))


if __name__ == "__main__":
    main()

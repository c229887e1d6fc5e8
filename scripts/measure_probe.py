"""Measure the linear probe on a data set: grouped cross-validation, nested, against the CLS token at the native size.

python scripts/measure_probe.py DATA --weights MODEL.safetensors [--name deit_tiny_patch16_224] [--folds 5] [--seeds 3]

DATA is what data.root accepts. All rows are used: run it on data whose test split is kept elsewhere, or whose figures
are only compared with each other. The representation and the penalty are chosen inside each training part.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import LoaderConfig
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import list_images
from streetvision.eval.counts import threshold_counts
from streetvision.eval.metrics import mcc
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.probe_head import LAYER_CHOICES, POOLING_CHOICES
from streetvision.training.probe import FeatureBank, Representation, fit_probe
from streetvision.training.scoring import apply_to_batches, evaluation_loader

Images = tuple[Path, tuple[Row, ...]]


def read_images(root: str, class_names: tuple[str, str], scratch: Path) -> Images:
    """The folder and the usable rows of a data set."""
    listing = list_images(root, class_names=class_names, import_to=scratch)
    index = scan_images(
        listing, class_names=class_names, limits=LoaderConfig().limits, with_hashes=False, progress=Silent()
    ).index
    return index.root, index.rows


def features_of(config: ModelConfig, images: Images) -> tuple[NDArray[np.float32], float, tuple[int, int]]:
    """Features (N, P), the seconds that they took, and the size of the input."""
    root, rows = images
    classifier = load_classifier(config, input_size(config, rows)).eval()
    start = time.perf_counter()
    with evaluation_loader(classifier, rows, root=root, loader=LoaderConfig()) as batches:
        features, _ = apply_to_batches(
            classifier.embed, batches, total=len(batches), label="features", progress=Silent()
        )
    return features.numpy(), time.perf_counter() - start, classifier.description.image_size


def cross_validated(
    features: NDArray[np.float32],
    rows: Sequence[Row],
    representations: Sequence[Representation],
    *,
    pooling: str,
    layers: int,
    folds: int,
    seeds: int,
) -> tuple[float, float, float]:
    """ROC-AUC and best MCC of out-of-fold margins, and the seconds of one fit; means over the seeds."""
    labels = np.array([row.label for row in rows])
    groups = np.array([row.group or row.sha256 for row in rows])
    figures, seconds = [], []
    for seed in range(seeds):
        margins = np.zeros(len(labels))
        for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups):
            start = time.perf_counter()
            probe = fit_probe(
                FeatureBank(features[train], pooling, layers),
                labels[train],
                groups[train].tolist(),
                representations=representations,
                class_weights=lambda _: (1.0, 1.0),
                seed=seed,
                progress=Silent(),
            )
            seconds.append(time.perf_counter() - start)
            x = FeatureBank(features[test], pooling, layers).read(probe.chosen.representation)
            margins[test] = x @ probe.weight + probe.bias
        curve = threshold_counts(labels, 1 / (1 + np.exp(-margins)))
        figures.append((roc_auc_score(labels, margins), np.max(mcc(curve.counts()))))
    auc, best = np.mean(figures, axis=0)
    return float(auc), float(best), float(np.median(seconds))


def main() -> None:
    """Print one line for the probe and one for its baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--class-names", nargs=2, default=("None", "Roadwork"))
    parser.add_argument("--name", default="deit_tiny_patch16_224")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    backbone = BackboneConfig(source="timm", name=options.name, weights=options.weights)
    with tempfile.TemporaryDirectory() as scratch:
        images = read_images(options.data, tuple(options.class_names), Path(scratch))
        widest, layers = POOLING_CHOICES[0], LAYER_CHOICES[0]
        choices = [Representation(pooling, count) for count in LAYER_CHOICES for pooling in POOLING_CHOICES]
        variants = {
            "probe, automatic size": (ModelConfig(backbone=backbone, pooling=widest, layers=layers), choices),
            "CLS token, native size": (
                ModelConfig(backbone=backbone, image_size="native", pooling="cls", layers=1),
                [Representation("cls", 1)],
            ),
        }
        for name, (config, representations) in variants.items():
            features, seconds, size = features_of(config, images)
            auc, best, fit = cross_validated(
                features,
                images[1],
                representations,
                pooling=str(config.pooling),
                layers=int(config.layers),
                folds=options.folds,
                seeds=options.seeds,
            )
            print(
                f"{name}: {size[0]} x {size[1]}, ROC-AUC {auc:.3f}, best MCC {best:.3f}; features of "
                f"{len(images[1])} images {seconds:.1f} s, one fit {fit:.1f} s"
            )


if __name__ == "__main__":
    main()

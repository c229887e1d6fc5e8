"""What is wrong with a data set, or may be: copies, labels in doubt, and what gives a label away beside the picture."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.crossfit import assign_folds
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Row
from streetvision.data.config import LoaderConfig
from streetvision.data.grouping.group_rows import group_rows
from streetvision.data.scan import Scan, scan_images
from streetvision.data.sources.data_root import list_images
from streetvision.eval.embedding_duplicates import EmbeddingDuplicates, embedding_duplicates
from streetvision.eval.metrics import roc_auc
from streetvision.eval.out_of_fold import out_of_fold_probabilities
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.pipeline.settings import RunConfig
from streetvision.training.features import FeatureCache

FOLDS = 5
CONFOUNDED_AUC = 0.8
"""Above this, size and brightness tell the classes apart too well for a claim about what a model sees."""
OPINIONS = 24
"""Pairs of a kind that a second opinion names."""
DOUBTED = 0.9
"""Probability of the other class from which a label is listed as doubtful."""


@dataclass(frozen=True)
class Doubt:
    """A label that the other images speak against."""

    row: Row
    against: float
    """Out-of-fold probability of the other class."""


@dataclass(frozen=True)
class Findings:
    """Everything that looking at a data set has found."""

    scan: Scan
    index: Index
    """The usable rows, in their groups."""
    near_duplicates: NearDuplicateClusters | None
    conflicts: tuple[tuple[Row, ...], ...]
    """Clusters of near-duplicates that have both labels."""
    metadata_auc: float | None
    """How well size and brightness alone rank the classes, out of fold; None with too few groups to tell."""
    doubts: tuple[Doubt, ...] | None
    """Labels in doubt, the most doubtful first; None where nobody asked."""
    opinion: EmbeddingDuplicates | None
    """What a backbone says of the near copies, by position among the rows; None where nobody asked."""

    @property
    def confounded(self) -> bool:
        """Whether what surrounds the pictures gives the label away."""
        return self.metadata_auc is not None and self.metadata_auc > CONFOUNDED_AUC


def find_faults(
    root: str, config: RunConfig, *, labels: bool = False, embeddings: bool = False, progress: Progress
) -> Findings:
    """Read every image of `root`; with `labels`, ask a classifier on backbone features about every label too.

    With `embeddings`, ask the features themselves which images are nearly the same.
    """
    data = config.data
    if embeddings and "near_duplicates" not in data.grouping.by:
        raise ConfigError(
            "--embeddings is a second opinion on near copies, and data.grouping.by does not look for them",
            "leave it out, or add near_duplicates to data.grouping.by",
        )
    with tempfile.TemporaryDirectory() as scratch:
        listing = list_images(
            root,
            class_names=data.class_names,
            import_to=Path(scratch),
            hf_split=data.hf_split,
            group_column=data.group_column,
            source_column=data.source_column,
        )
        looking = "near_duplicates" in data.grouping.by
        limits = config.loader.limits
        scan = scan_images(listing, class_names=data.class_names, limits=limits, looking=looking, progress=progress)
        index, near_duplicates = group_rows(scan, data.grouping)
        asked = labels or embeddings
        features = _features(index, config.model, config.loader, Path(scratch), progress) if asked else None
    return Findings(
        scan,
        index,
        near_duplicates,
        _conflicts(index.rows, near_duplicates),
        _metadata_auc(index.rows),
        None if features is None or not labels else _doubts(index.rows, features),
        None if features is None or not embeddings else _opinion(index.rows, near_duplicates, features),
    )


def _opinion(
    rows: Sequence[Row], near_duplicates: NearDuplicateClusters | None, features: NDArray[np.float64]
) -> EmbeddingDuplicates:
    clusters = np.arange(len(rows))
    position = {row.path: number for number, row in enumerate(rows)}
    for paths in near_duplicates.clusters if near_duplicates else ():
        clusters[[position[path] for path in paths]] = position[paths[0]]
    # What two images share with the average street says nothing of the two.
    return embedding_duplicates(features - features.mean(axis=0), clusters, most=OPINIONS)


def _conflicts(rows: Sequence[Row], near_duplicates: NearDuplicateClusters | None) -> tuple[tuple[Row, ...], ...]:
    by_path = {row.path: row for row in rows}
    clusters = (
        tuple(by_path[path] for path in paths) for paths in (near_duplicates.clusters if near_duplicates else ())
    )
    return tuple(cluster for cluster in clusters if len({row.label for row in cluster}) == 2)


def _metadata_auc(rows: Sequence[Row]) -> float | None:
    """How well width, height and brightness, and their squares, rank the classes out of fold.

    Below 0.5 is no finding: leaving a group out moves the others' share of its class the other way.
    """
    folds = _folds(rows)
    if folds is None:
        return None
    facts = np.array([[np.log(row.width), np.log(row.height), row.brightness] for row in rows])
    probabilities = out_of_fold_probabilities(np.hstack([facts, facts**2]), _labels(rows), folds)
    return roc_auc([row.label for row in rows], probabilities.tolist())


def _doubts(rows: Sequence[Row], features: NDArray[np.float64]) -> tuple[Doubt, ...]:
    folds = _folds(rows)
    if folds is None:
        return ()
    labels = _labels(rows)
    probabilities = out_of_fold_probabilities(features, labels, folds)
    against = np.where(labels == 1, 1 - probabilities, probabilities)
    order = [position for position in np.argsort(-against, kind="stable") if against[position] >= DOUBTED]
    return tuple(Doubt(rows[position], float(against[position])) for position in order)


def _features(
    index: Index, model: ModelConfig, loader: LoaderConfig, scratch: Path, progress: Progress
) -> NDArray[np.float64]:
    cache = FeatureCache(scratch / "features", load_classifier(model), loader=loader, progress=progress)
    features, _ = cache.features(index.rows, root=index.root, name="all")
    return features.double().numpy()


def _labels(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([row.label for row in rows], dtype=np.int64)


def _folds(rows: Sequence[Row]) -> NDArray[np.int64] | None:
    """A fold (N,) for each row, groups whole; None where there are too few groups, or one class alone."""
    groups = [row.group for row in rows]
    units = len({group for group in groups if group is not None}) + groups.count(None)
    if units < FOLDS or len({row.label for row in rows}) < 2:
        return None
    return assign_folds(groups, folds=FOLDS, seed=0)

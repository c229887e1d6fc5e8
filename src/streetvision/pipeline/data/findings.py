"""Problems of a data set: duplicates, label conflicts, suspicious labels, and metadata that reveals the label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.calibration.crossfit import assign_folds
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import no_effect
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Row
from streetvision.data.grouping.group_rows import copy_conflicts, group_rows
from streetvision.data.grouping.name_pattern import apply_patterns
from streetvision.data.scan import Scan, scan_images
from streetvision.data.sources.discovery import class_names_warning, list_images
from streetvision.eval.embeddings import EmbeddingDuplicates, embedding_duplicates
from streetvision.eval.metrics import roc_auc
from streetvision.eval.out_of_fold import out_of_fold_probabilities
from streetvision.pipeline.settings import RunConfig

FOLDS = 5
CONFOUNDED_AUC = 0.8
"""ROC-AUC of size and brightness alone above which the classes count as confounded with them."""
MAX_EMBEDDING_PAIRS = 24
"""Pairs of each kind that the comparison with embeddings lists."""
SUSPICIOUS_FROM = 0.9
"""Probability of the other class from which a label is listed as suspicious."""


@dataclass(frozen=True)
class SuspiciousLabel:
    """A label that a classifier fitted on the other groups contradicts."""

    row: Row
    other_class_probability: float
    """Out of fold."""


@dataclass(frozen=True)
class Findings:
    """The result of a data check."""

    scan: Scan
    """As `train` uses it: copies of one photograph with both labels are invalid."""
    index: Index
    """The usable rows and the copies with both labels, with their groups."""
    has_groups: bool
    """Whether the data set or data.group_pattern gives any image a group."""
    near_duplicates: NearDuplicateClusters | None
    conflicts: tuple[tuple[Row, ...], ...]
    """Clusters of copies with both labels. Similar views may have different labels."""
    metadata_auc: float | None
    """Out-of-fold ROC-AUC of size and brightness alone; None with too few groups or one class."""
    suspicious_labels: tuple[SuspiciousLabel, ...] | None
    """The most suspicious first; None if not requested."""
    embedding_duplicates: EmbeddingDuplicates | None
    """Comparison of the near-duplicates with embeddings, by row number; None if not requested."""

    @property
    def confounded(self) -> bool:
        """Whether size and brightness reveal the label."""
        return self.metadata_auc is not None and self.metadata_auc > CONFOUNDED_AUC

    @property
    def usable(self) -> tuple[Row, ...]:
        """The usable rows with their groups."""
        paths = {row.path for row in self.scan.index.rows}
        return tuple(row for row in self.index.rows if row.path in paths)

    @property
    def clusters(self) -> tuple[tuple[Row, ...], ...]:
        """The clusters of near-duplicates: copies and similar views."""
        return self._rows(self.near_duplicates.clusters if self.near_duplicates else ())

    @property
    def copies(self) -> tuple[tuple[Row, ...], ...]:
        """The clusters of copies of one photograph."""
        return self._rows(self.near_duplicates.copies if self.near_duplicates else ())

    @property
    def similar_views(self) -> tuple[tuple[Row, ...], ...]:
        """The clusters of near-duplicates that are not copies alone."""
        copies = {frozenset(cluster) for cluster in self.copies}
        return tuple(cluster for cluster in self.clusters if frozenset(cluster) not in copies)

    def _rows(self, clusters: Sequence[Sequence[str]]) -> tuple[tuple[Row, ...], ...]:
        by_path = {row.path: row for row in self.index.rows}
        return tuple(tuple(by_path[path] for path in paths) for paths in clusters)


def find_problems(
    root: str, config: RunConfig, scratch: Path, *, labels: bool = False, embeddings: bool = False, progress: Progress
) -> Findings:
    """Read every image of `root` and check the data set.

    Args:
        root: The data set, as for data.root.
        config: Settings of grouping, loader and backbone.
        scratch: Folder for exported images, which the rows name, and for features.
        labels: Also check every label with a classifier on backbone features.
        embeddings: Also search near-duplicates by backbone features.
        progress: Shows the advance.

    Raises:
        ConfigError: data.labels is set, or `embeddings` without near_duplicates in data.grouping.by.
    """
    data = config.data
    if data.labels is not None:
        raise no_effect("data.labels", "a data set is checked", "set it for train")
    hashed = "near_duplicates" in data.grouping.by
    if embeddings and not hashed:
        raise ConfigError(
            "--embeddings needs near_duplicates, and data.grouping.by does not contain near_duplicates",
            "add near_duplicates to data.grouping.by, or leave --embeddings out",
        )
    listing = list_images(
        root,
        class_names=data.class_names,
        import_to=scratch,
        hf_split=data.hf_split,
        group_column=data.group_column,
        source_column=data.source_column,
        coco=data.coco,
    )
    if warning := class_names_warning(listing, data.class_names):
        progress.warn(warning)
    listing = apply_patterns(listing, data)
    limits = config.loader.limits
    scan = scan_images(
        listing,
        class_names=data.class_names,
        limits=limits,
        damaged_images=data.damaged_images,
        with_hashes=hashed,
        progress=progress,
    )
    index, near_duplicates = group_rows(scan.index, scan.hashes, data.grouping, progress=progress)
    features = None
    if (labels or embeddings) and index.rows:
        # These load torchvision, which takes seconds; a check without features does not need it.
        from streetvision.models.module import load_classifier
        from streetvision.pipeline.input_size import input_size
        from streetvision.training.features import FeatureCache

        classifier = load_classifier(config.model, input_size(config.model, index.rows))
        cache = FeatureCache(scratch / "features", classifier, loader=config.loader, progress=progress)
        features = cache.features(index.rows, root=index.root, name="all")[0].double().numpy()
    has_groups = any(image.group is not None for image in listing.images)
    scan = scan.without(copy_conflicts(index, near_duplicates))
    findings = Findings(scan, index, has_groups, near_duplicates, (), _metadata_auc(index.rows), None, None)
    return replace(
        findings,
        conflicts=tuple(c for c in findings.copies if len({row.label for row in c}) == 2),
        suspicious_labels=_suspicious_labels(index.rows, features) if features is not None and labels else None,
        embedding_duplicates=_compare_embeddings(findings, features) if features is not None and embeddings else None,
    )


def _metadata_auc(rows: Sequence[Row]) -> float | None:
    """Out-of-fold ROC-AUC of width, height, brightness and their squares.

    A value below 0.5 means nothing: leaving out a group moves the class share of the other groups in the opposite
    direction.
    """
    folds = _folds(rows)
    if folds is None:
        return None
    metadata = np.array([[np.log(row.width), np.log(row.height), row.brightness] for row in rows])
    probabilities = out_of_fold_probabilities(np.hstack([metadata, metadata**2]), _labels(rows), folds)
    return roc_auc([row.label for row in rows], probabilities.tolist())


def _suspicious_labels(rows: Sequence[Row], features: NDArray[np.float64]) -> tuple[SuspiciousLabel, ...]:
    folds = _folds(rows)
    if folds is None:
        return ()
    labels = _labels(rows)
    probabilities = out_of_fold_probabilities(features, labels, folds)
    other_class = np.where(labels == 1, 1 - probabilities, probabilities)
    order = [i for i in np.argsort(-other_class, kind="stable") if other_class[i] >= SUSPICIOUS_FROM]
    return tuple(SuspiciousLabel(rows[i], float(other_class[i])) for i in order)


def _compare_embeddings(findings: Findings, features: NDArray[np.float64]) -> EmbeddingDuplicates:
    rows = findings.index.rows
    clusters = np.arange(len(rows))
    number = {row.path: i for i, row in enumerate(rows)}
    for cluster in findings.clusters:
        clusters[[number[row.path] for row in cluster]] = number[cluster[0].path]
    # All street images share the mean embedding, which carries no information about a pair.
    return embedding_duplicates(features - features.mean(axis=0), clusters, max_pairs=MAX_EMBEDDING_PAIRS)


def _labels(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([row.label for row in rows], dtype=np.int64)


def _folds(rows: Sequence[Row]) -> NDArray[np.int64] | None:
    """(N,) fold of each row, by whole groups; None with fewer groups than folds, or one class."""
    groups = [row.group for row in rows]
    units = len({group for group in groups if group is not None}) + groups.count(None)
    if units < FOLDS or len({row.label for row in rows}) < 2:
        return None
    return assign_folds(groups, folds=FOLDS, seed=0)

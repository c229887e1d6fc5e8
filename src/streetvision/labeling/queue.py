"""The images to label, in order: those that a strategy chooses, mixed with images drawn at random.

A metric on images that a model chose is biased. So some groups are reserved: only the random draw takes images from
them, and only images drawn at random may be evaluated. The digest of its images decides whether a group is reserved, so
the choice is the same in every round and does not depend on what the images show.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from sklearn.linear_model import LogisticRegression

from streetvision.calibration.crossfit import assign_folds
from streetvision.contracts.split_contracts import RANDOM_QUEUE
from streetvision.labeling.strategies import (
    EPSILON,
    Committee,
    FloatArray,
    choose_diverse,
    choose_uncertain,
    fit_committee,
)

RANDOM_SHARE = 0.1
"""Share of every queue that is drawn at random, at least."""
RESERVED_SHARE = 0.1
"""Share of the groups that only the random draw takes images from."""
FEWEST_OF_CLASS = 2
"""Labeled images of each class that fitting a committee needs."""
FOLDS = 5
SUSPICION_STRENGTH = 10.0
"""Inverse L2 penalty of the classifiers of `label_suspicion`, for features with a squared length of about 1."""
SUSPICIOUS_FROM = 0.5
"""Probability of the other class at or above which a label is shown as suspicious."""
MIXED = "mixed"
STRATEGIES = (MIXED, "diverse", "uncertain", "abstained", "suspicious", RANDOM_QUEUE)


@dataclass(frozen=True)
class Candidate:
    """An image that may be shown."""

    sha256: str
    path: str
    """Absolute."""
    group: str | None = None
    label: int | None = None
    """Label of the data set or of people; None: not labeled."""
    queue: str | None = None
    """Queue by which people labeled it; None: they did not."""
    skipped: bool = False
    protected: bool = False
    """In an evaluation split of the run, so that no model may choose it."""
    abstained: bool = False
    """By a deployed model."""
    in_conflict: bool = False
    """A copy of it has the other label."""

    @property
    def unit(self) -> str:
        """The group, or the image itself."""
        return self.group or self.sha256


@dataclass(frozen=True)
class QueuedImage:
    """An image in the queue."""

    sha256: str
    path: str
    group: str | None
    queue: str
    reason: str
    """Why it is in the queue. It does not reveal what the model predicts."""
    probability: float | None = None
    """Probability of class 1 by the model; None: no model."""
    model: str | None = None
    """Digest of the model."""


@dataclass(frozen=True)
class Queue:
    """The images to show, and how many further images are worth a label."""

    images: tuple[QueuedImage, ...]
    worthwhile: int | None
    """Images without a label, on which the members of the committee disagree; None: there is no committee yet."""


def plan_queue(
    candidates: Sequence[Candidate],
    features: FloatArray | None,
    *,
    strategy: str,
    count: int,
    seed: int,
) -> Queue:
    """Return the images to label next.

    Args:
        candidates: N images, labeled ones included.
        features: (N, P); None: neither clusters nor a committee.
        strategy: One of STRATEGIES.
        count: Largest number of images.
        seed: Seed of all draws.
    """
    reserved = reserved_units(candidates)
    open_ = [i for i, c in enumerate(candidates) if c.label is None and not c.skipped]
    # Before a model selected any image for labeling, all groups may be drawn.
    unbiased = strategy == RANDOM_QUEUE and {c.queue for c in candidates} <= {None, RANDOM_QUEUE}
    drawable = [i for i in open_ if unbiased or candidates[i].unit in reserved]
    drawable.sort(key=lambda i: sha256(f"{seed} {candidates[i].sha256}".encode()).digest())
    n_random = count if strategy == RANDOM_QUEUE else math.ceil(RANDOM_SHARE * count)
    committee, model = _committee(candidates, features, seed)
    parts = (
        []
        if strategy == RANDOM_QUEUE
        else list(_choose(candidates, features, committee, reserved, strategy, count - n_random, seed))
    )
    if strategy == MIXED:  # what the strategies lack is drawn at random
        n_random = count - sum(map(len, parts))
    parts.append([_entry(candidates[i], RANDOM_QUEUE, "drawn at random") for i in drawable[:n_random]])
    images = _mixed(parts)
    if committee is not None:
        probability = {c.sha256: float(p) for c, p in zip(candidates, committee.consensus, strict=True)}
        images = [replace(image, probability=probability[image.sha256], model=model) for image in images]
    worthwhile = None if committee is None else int(committee.disagrees[open_].sum())
    return Queue(tuple(images), worthwhile)


def reserved_units(candidates: Sequence[Candidate]) -> set[str]:
    """Return the groups from which only the random draw takes images.

    These are groups with a label that was drawn at random, and a fixed share of those without a label of a person.
    """
    first: dict[str, str] = {}
    of_unit: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        of_unit[candidate.unit].append(candidate)
        first[candidate.unit] = min(first.get(candidate.unit, candidate.sha256), candidate.sha256)
    reserved = set()
    for unit, members in of_unit.items():
        queues = {member.queue for member in members} - {None}
        at_random = RANDOM_QUEUE in queues
        by_digest = int(sha256(f"reserved {first[unit]}".encode()).hexdigest()[:8], 16) / 2**32 < RESERVED_SHARE
        if at_random or (not queues and by_digest):
            reserved.add(unit)
    return reserved


def _choose(
    candidates: Sequence[Candidate],
    features: FloatArray | None,
    committee: Committee | None,
    reserved: set[str],
    strategy: str,
    count: int,
    seed: int,
) -> Iterator[list[QueuedImage]]:
    """At most `count` images that a strategy chooses, by its parts."""
    eligible = [i for i, c in enumerate(candidates) if c.unit not in reserved and not c.protected and not c.skipped]
    pool = [i for i in eligible if candidates[i].label is None]
    allowed, taken = set(eligible), set[int]()
    share = {MIXED: MIXTURE if committee is not None else (("diverse", 1.0),)}.get(strategy, ((strategy, 1.0),))
    for name, fraction in share:
        rest = [i for i in pool if i not in taken]
        limit = min(count - len(taken), math.ceil(fraction * count))
        found: list[int] = []
        if name == "abstained":
            found = [i for i in rest if candidates[i].abstained][:limit]
        elif name == "suspicious":
            found = [i for i in _contradicted(candidates, features) if i in allowed][:limit]
        elif rest and features is not None and (name == "diverse" or committee is None):
            labelled = [i for i, c in enumerate(candidates) if c.label is not None]
            positions = choose_diverse(
                features[rest], [candidates[i].unit for i in rest], limit, covered=features[labelled], seed=seed
            )
            name, found = "diverse", [rest[p] for p in positions]
        elif rest and features is not None and committee is not None:
            positions = choose_uncertain([candidates[i].unit for i in rest], committee.entropy[rest], limit)
            found = [rest[p] for p in positions]
        taken.update(found)
        yield [
            _entry(candidates[i], name, "copies of it have both labels" if candidates[i].in_conflict else REASONS[name])
            for i in found
        ]


MIXTURE = (("abstained", 0.3), ("suspicious", 0.1), ("uncertain", 1.0))
"""Parts of the mixed queue once a committee can be fitted. What one part does not fill, the last one does."""
REASONS = {
    "diverse": "typical of images that have no label yet",
    "uncertain": "a model that was fitted to the labels is uncertain",
    "abstained": "the deployed model abstained",
    "suspicious": "its label may be wrong",
}


def _entry(candidate: Candidate, queue: str, reason: str) -> QueuedImage:
    return QueuedImage(candidate.sha256, candidate.path, candidate.group, queue, reason)


def _mixed(parts: Sequence[Sequence[QueuedImage]]) -> list[QueuedImage]:
    """The images of all parts, each part at even distances, so that every section of the queue has its share."""
    order = [((i + 0.5) / len(part), image) for part in parts for i, image in enumerate(part)]
    order.sort(key=lambda pair: pair[0])
    return [image for _, image in order]


def _committee(
    candidates: Sequence[Candidate], features: FloatArray | None, seed: int
) -> tuple[Committee | None, str | None]:
    """The committee that the labels allow, with its digest; (None, None) without features, or with too few labels."""
    labelled = [i for i, c in enumerate(candidates) if c.label is not None]
    counts = Counter(candidates[i].label for i in labelled)
    if features is None or min(counts[0], counts[1]) < FEWEST_OF_CLASS:
        return None, None
    labels = np.array([candidates[i].label for i in labelled], dtype=np.int64)
    committee = fit_committee(features, features[labelled], labels, [candidates[i].unit for i in labelled], seed=seed)
    return committee, sha256(committee.probabilities.astype(np.float32).tobytes()).hexdigest()


def _contradicted(candidates: Sequence[Candidate], features: FloatArray | None) -> list[int]:
    """Labeled images: copies with both labels, then those whose label a classifier of other groups contradicts."""
    labelled = [i for i, c in enumerate(candidates) if c.label is not None]
    conflicts = [i for i in labelled if candidates[i].in_conflict]
    # A label that a person gave here was contradicted before, or is not in doubt.
    rest = [i for i in labelled if candidates[i].queue is None and not candidates[i].in_conflict]
    labels = np.array([candidates[i].label for i in labelled], dtype=np.int64)
    if features is None or len({candidates[i].unit for i in labelled}) < FOLDS or len(set(labels.tolist())) < 2:
        return conflicts
    suspicion = label_suspicion(features[labelled], labels, [candidates[i].unit for i in labelled])
    of_row: Mapping[int, float] = dict(zip(labelled, suspicion.tolist(), strict=True))
    return conflicts + sorted((i for i in rest if of_row[i] >= SUSPICIOUS_FROM), key=lambda i: -of_row[i])


def label_suspicion(features: FloatArray, labels: np.ndarray, groups: Sequence[str]) -> FloatArray:
    """Return (N,) the probability of the other class, the mean of two classifiers.

    The first did not see the group of the image, and finds groups with a wrong label. The second did not see the image
    itself, and finds single images whose label differs from those of their group.

    Args:
        features: (N, P) of `reduce_features`.
        labels: (N,) 0 or 1, with both classes.
        groups: Group of each image (N,).
    """
    scale = np.sqrt(np.square(features).sum(axis=1).mean()) + EPSILON
    images = [str(i) for i in range(len(labels))]
    other_class = np.zeros(len(labels))
    for units in (groups, images):
        folds = assign_folds(units, folds=FOLDS, seed=0)
        for fold in range(FOLDS):
            held_out = folds == fold
            if len(set(labels[~held_out].tolist())) < 2:
                other_class[held_out] += 0.25
                continue
            model = LogisticRegression(C=SUSPICION_STRENGTH, max_iter=1000)
            model.fit(features[~held_out] / scale, labels[~held_out])
            p = model.predict_proba(features[held_out] / scale)[:, 1]
            other_class[held_out] += np.where(labels[held_out] == 1, 1 - p, p) / 2
    return other_class

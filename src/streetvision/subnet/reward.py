"""The windowed reward of the NATIX StreetVision subnet for a stream of predictions.

Per challenge: (MCC over the last 100 challenges / 2 + accuracy over the last 10 / 2) ** 3; the score is the moving
average. The rules are those of the subnet's public repository at v0.2.4 (docs/how-to/subnet.md).

Shapes: S streams, T challenges of one stream; `...` any leading axes.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, FloatArray
from streetvision.eval.metrics import mcc
from streetvision.eval.thresholds import decide

SUBNET_STATUS = (
    "on 6 and 7 May 2026 the validator stopped sending challenges and all miner rewards were burned; on 24 July 2026 a "
    "public tracker still showed 100 % burned; nothing later is known, so no earnings can be expected"
)
"""Status of the subnet, printed with every simulation."""

MCC_WINDOW, ACCURACY_WINDOW = 100, 10
ALPHA = 0.05
"""Weight of the newest reward in the moving average, which starts at 0."""
NO_RESPONSE = -1.0
BLOCKED_AFTER_INVALID = 98
"""Number of challenges after a prediction that rounds to neither class (such as 1.7) whose reward is also 0."""
GRID = 101
"""Largest number of thresholds that `best_threshold` tries."""

IntArray: TypeAlias = NDArray[np.int64]


def rewards(labels: ArrayLike, predictions: ArrayLike) -> FloatArray:
    """The reward (..., T) of each prediction (..., T) for a challenge whose label is 0 or 1.

    A prediction is a probability of class 1, rounded half to even, so that 0.5 means class 0. -1 and NaN mean no
    prediction: the reward is 0, the challenge takes its place in both windows, and the metrics leave it out. The same
    holds for a prediction outside [0, 1]; if it still rounds to a class, it counts in the metrics of later challenges.
    MCC below 0 counts as 0. Raises DataError for shapes that differ or labels other than 0 and 1.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions, dtype=np.float64)
    if labels.shape != predictions.shape or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"expected a label 0 or 1 for each prediction, got shapes {labels.shape} and {predictions.shape}"
        )
    missing = np.isnan(predictions) | (predictions == NO_RESPONSE)
    decisions = np.round(predictions)
    is_class = (decisions == 0) | (decisions == 1)
    counts = _outcome_cells(labels, decisions, is_class & ~missing)
    long, short = (_window_counts(counts, window) for window in (MCC_WINDOW, ACCURACY_WINDOW))
    accuracy = (short.tp + short.tn) / np.maximum(short.total, 1)
    base = 0.5 * np.maximum(mcc(long), 0) + 0.5 * accuracy
    valid = (
        ~missing
        & (predictions >= 0)
        & (predictions <= 1)
        & ~_happened_within(~is_class & ~missing, BLOCKED_AFTER_INVALID)
    )
    return np.where(valid, base * base * base, 0.0)


def moving_average(earned: ArrayLike) -> FloatArray:
    """The score (..., T) after each reward (..., T): ALPHA * reward + (1 - ALPHA) * previous score."""
    earned = np.asarray(earned, dtype=np.float64)
    score, scores = np.zeros(earned.shape[:-1]), np.empty(earned.shape)
    for step in range(earned.shape[-1]):
        score = ALPHA * earned[..., step] + (1 - ALPHA) * score
        scores[..., step] = score
    return scores


@dataclass(frozen=True)
class Challenges:
    """Streams of challenges, drawn once, so that thresholds are compared on the same images."""

    labels: IntArray
    """(S, T): 0 or 1 with equal probability."""
    images: IntArray
    """(S, T): positions of the images."""
    timeouts: FloatArray
    """(S, T), uniform in [0, 1): a challenge times out where this is below the timeout fraction."""

    @classmethod
    def draw(cls, labels: ArrayLike, *, streams: int, steps: int, seed: int) -> "Challenges":
        """Streams over images with `labels` (N,): first a label, then an image of it, with replacement.

        Raises DataError unless there are images of both classes.
        """
        known = np.asarray(labels)
        of_label = [np.flatnonzero(known == label) for label in (0, 1)]
        if not all(positions.size for positions in of_label):
            raise DataError("the reward needs images of both classes, and these have one class only")
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, 2, (streams, steps))
        negatives, positives = (positions[rng.integers(0, positions.size, drawn.shape)] for positions in of_label)
        return cls(drawn, np.where(drawn == 1, positives, negatives), rng.random(drawn.shape))

    def rewards(self, decisions: ArrayLike, *, timeout_fraction: float = 0.0) -> FloatArray:
        """Rewards (S, T) of a miner with `decisions` (N,), a fraction of them timed out."""
        predictions = np.asarray(decisions, dtype=np.float64)[self.images]
        return rewards(self.labels, np.where(self.timeouts < timeout_fraction, NO_RESPONSE, predictions))


@dataclass(frozen=True)
class FinalScore:
    """The score at the end of the streams."""

    mean: float
    p5: float
    p95: float


def final_score(earned: FloatArray) -> FinalScore:
    """Mean and 5th to 95th percentile of the score at the end of streams of rewards (S, T)."""
    final = moving_average(earned)[..., -1]
    p5, p95 = np.percentile(final, (5, 95))
    return FinalScore(float(final.mean()), float(p5), float(p95))


def best_threshold(probabilities: ArrayLike, challenges: Challenges) -> float:
    """The threshold with the highest mean reward over `challenges`.

    It tries at most GRID thresholds between the probabilities. Ties go to the middle one of the plateau.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    distinct = np.unique(p)
    between = (distinct[1:] + distinct[:-1]) / 2 if distinct.size > 1 else distinct
    cuts = np.unique(np.quantile(between, np.linspace(0, 1, GRID), method="nearest"))
    means = np.array([challenges.rewards(decide(p, cut)).mean() for cut in cuts])
    best = np.flatnonzero(means == means.max())
    return float(cuts[best[len(best) // 2]])


def _outcome_cells(labels: NDArray[np.generic], decisions: FloatArray, counted: BoolArray) -> Counts:
    """The cell of the confusion matrix of each prediction (..., T); none where it is not counted."""
    real, called = counted & (labels == 1), decisions == 1
    unreal = counted & (labels == 0)
    return Counts(tp=real & called, tn=unreal & ~called, fp=unreal & called, fn=real & ~called)


def _window_counts(counts: Counts, window: int) -> Counts:
    """Counts (..., T) over the last `window` challenges at each of them."""

    def total(outcome: BoolArray) -> IntArray:
        until = np.cumsum(outcome, axis=-1, dtype=np.int64)
        until[..., window:] -= until[..., :-window].copy()
        return until

    return Counts(*(total(cell) for cell in (counts.tp, counts.tn, counts.fp, counts.fn)))


def _happened_within(event: BoolArray, steps: int) -> BoolArray:
    """Whether `event` happened in one of the `steps` challenges before each."""
    until = np.cumsum(event, axis=-1, dtype=np.int64)
    before = np.zeros_like(until)
    before[..., 1:] = until[..., :-1]
    before[..., steps + 1 :] -= until[..., : -steps - 1]
    lately: BoolArray = before > 0
    return lately

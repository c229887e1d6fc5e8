"""The windowed reward by which the NATIX StreetVision subnet scores a stream of answers.

Per challenge: (MCC over the last 100 challenges / 2 + accuracy over the last 10 / 2) ** 3; the score is the moving
average. The rules are those of the subnet's public repository at v0.2.4, as written down in docs/how-to/subnet.md.

Legend: S streams, T challenges of one stream; `...` any leading axes.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, FloatArray
from streetvision.eval.metrics import mcc
from streetvision.eval.thresholds import decide

STATE = (
    "on 6 and 7 May 2026 the validator stopped sending challenges and all miner rewards were burned; on 24 July 2026 a "
    "public tracker still showed 100 % burned; nothing later is known, so this promises no earnings"
)
"""What is known of the subnet."""

MCC_WINDOW, ACCURACY_WINDOW = 100, 10
ALPHA = 0.05
"""Weight of the newest reward in the moving average, which starts at 0."""
NO_ANSWER = -1.0
SPOILED = 98
"""Challenges after an answer that rounds to neither class (1.7 does) whose reward is 0, too."""
GRID = 101
"""Thresholds that `best_threshold` tries at most."""

IntArray: TypeAlias = NDArray[np.int64]


def rewards(labels: ArrayLike, answers: ArrayLike) -> FloatArray:
    """The reward (..., T) of each answer (..., T) to a challenge whose label is 0 or 1.

    An answer is a probability of class 1, rounded half to even, so that 0.5 means class 0; -1 and NaN are no answer.
    No answer earns 0, uses its slot of both windows and is left out of the metrics; so does an answer outside [0, 1],
    except that one which still rounds to a class counts in the metrics of the challenges after it.
    MCC below 0 counts as 0. Raises DataError for shapes that differ or labels that are neither 0 nor 1.
    """
    labels, answers = np.asarray(labels), np.asarray(answers, dtype=np.float64)
    if labels.shape != answers.shape or not np.isin(labels, (0, 1)).all():
        raise DataError(f"expected a label, 0 or 1, for each answer, came {labels.shape} and {answers.shape}")
    missing = np.isnan(answers) | (answers == NO_ANSWER)
    decisions = np.round(answers)
    is_class = (decisions == 0) | (decisions == 1)
    counts = _outcomes(labels, decisions, is_class & ~missing)
    long, short = (_over_last(counts, window) for window in (MCC_WINDOW, ACCURACY_WINDOW))
    accuracy = (short.tp + short.tn) / np.maximum(short.total, 1)
    base = 0.5 * np.maximum(mcc(long), 0) + 0.5 * accuracy
    valid = ~missing & (answers >= 0) & (answers <= 1) & ~_lately(~is_class & ~missing, SPOILED)
    return np.where(valid, base * base * base, 0.0)


def moving_average(earned: ArrayLike) -> FloatArray:
    """The score (..., T) after each reward (..., T): alpha times the reward, the rest from before."""
    earned = np.asarray(earned, dtype=np.float64)
    score, scores = np.zeros(earned.shape[:-1]), np.empty(earned.shape)
    for step in range(earned.shape[-1]):
        score = ALPHA * earned[..., step] + (1 - ALPHA) * score
        scores[..., step] = score
    return scores


@dataclass(frozen=True)
class Challenges:
    """Which images streams of challenges ask for, so that thresholds are compared on the same ones."""

    labels: IntArray
    """(S, T): 0 or 1, each as likely as the other."""
    images: IntArray
    """(S, T): positions of the images that were asked."""
    timeouts: FloatArray
    """(S, T), uniform: a challenge is not answered in time where this is below the share of timeouts."""

    @classmethod
    def draw(cls, labels: ArrayLike, *, streams: int, steps: int, seed: int) -> "Challenges":
        """Streams over images with `labels` (N,): first a label, then any image of it, with replacement.

        Raises DataError unless there are images of both labels.
        """
        known = np.asarray(labels)
        of_label = [np.flatnonzero(known == label) for label in (0, 1)]
        if not all(positions.size for positions in of_label):
            raise DataError("challenges ask for both classes, and the images are of one class only")
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, 2, (streams, steps))
        none, works = (positions[rng.integers(0, positions.size, drawn.shape)] for positions in of_label)
        return cls(drawn, np.where(drawn == 1, works, none), rng.random(drawn.shape))

    def rewards(self, decisions: ArrayLike, *, timeout_fraction: float = 0.0) -> FloatArray:
        """Rewards (S, T) of a miner that answers `decisions` (N,), some of them too late."""
        answers = np.asarray(decisions, dtype=np.float64)[self.images]
        return rewards(self.labels, np.where(self.timeouts < timeout_fraction, NO_ANSWER, answers))


@dataclass(frozen=True)
class Standing:
    """The moving average at the end of streams."""

    mean: float
    p5: float
    p95: float


def standing(earned: FloatArray) -> Standing:
    """Mean and 5th to 95th percentile of the score at the end of streams of rewards (S, T)."""
    final = moving_average(earned)[..., -1]
    p5, p95 = np.percentile(final, (5, 95))
    return Standing(float(final.mean()), float(p5), float(p95))


def best_threshold(probabilities: ArrayLike, challenges: Challenges) -> float:
    """The threshold with the highest mean reward over `challenges`, of at most GRID cuts through the probabilities.

    Ties go to the middle one, which lies deepest in the plateau.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    distinct = np.unique(p)
    between = (distinct[1:] + distinct[:-1]) / 2 if distinct.size > 1 else distinct
    cuts = np.unique(np.quantile(between, np.linspace(0, 1, GRID), method="nearest"))
    means = np.array([challenges.rewards(decide(p, cut)).mean() for cut in cuts])
    best = np.flatnonzero(means == means.max())
    return float(cuts[best[len(best) // 2]])


def _outcomes(labels: NDArray[np.generic], decisions: FloatArray, counted: BoolArray) -> Counts:
    """What each answer (..., T) turned out to be: one of the four, or none where it is not counted."""
    real, called = counted & (labels == 1), decisions == 1
    unreal = counted & (labels == 0)
    return Counts(tp=real & called, tn=unreal & ~called, fp=unreal & called, fn=real & ~called)


def _over_last(counts: Counts, window: int) -> Counts:
    """Counts (..., T) over the last `window` challenges at each of them."""

    def total(outcome: BoolArray) -> IntArray:
        until = np.cumsum(outcome, axis=-1, dtype=np.int64)
        until[..., window:] -= until[..., :-window].copy()
        return until

    return Counts(*(total(cell) for cell in (counts.tp, counts.tn, counts.fp, counts.fn)))


def _lately(event: BoolArray, steps: int) -> BoolArray:
    """Whether `event` happened in one of the `steps` challenges before each."""
    until = np.cumsum(event, axis=-1, dtype=np.int64)
    before = np.zeros_like(until)
    before[..., 1:] = until[..., :-1]
    before[..., steps + 1 :] -= until[..., : -steps - 1]
    lately: BoolArray = before > 0
    return lately

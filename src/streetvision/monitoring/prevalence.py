"""The share of positives in a stream without labels, if only this share has changed.

The maximum of the likelihood that Saerens, Latinne and Decaestecker (Adjusting the outputs of a classifier to new a
priori probabilities, Neural Computation 14, 2002) find by expectation maximization. It is concave (du Plessis and
Sugiyama, 2012), so the root of its derivative is found by bisection. Probabilities are first fitted to the labels of
the reference by a logistic curve, without which the estimate is biased (Alexandari, Kundaje and Shrikumar, ICML 2020).

Shapes: M images of the reference, G bins, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

FloatArray = NDArray[np.float64]

LOGIT_LIMIT, BINS = 12.0, 240
"""Calibrated log-odds are counted in this number of bins between -LOGIT_LIMIT and LOGIT_LIMIT."""
MIN_CLASS = 10
"""Fewest images of each class in the reference."""
MIN_AUC = 0.6
"""A classifier that separates the classes less gives no estimate."""
RESAMPLES, LEVEL = 400, 0.95
NEWTON_STEPS, BISECTIONS = 12, 40
RIDGE = 1e-3
"""Keeps the logistic curve finite for classes that are separated."""


@dataclass(frozen=True)
class Prevalence:
    """A share of positives with its interval."""

    estimate: float
    low: float
    high: float


def logit_bins(probabilities: FloatArray) -> NDArray[np.int64]:
    """Return the bin of each calibrated probability (N,)."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return np.clip((logits + LOGIT_LIMIT) * (BINS / (2 * LOGIT_LIMIT)), 0, BINS - 1).astype(np.int64)


def estimate_prevalence(
    counts: NDArray[np.int64], reference: NDArray[np.int64], labels: NDArray[np.int64], *, seed: int = 0
) -> Prevalence | None:
    """Estimate the share of positives; the interval is a bootstrap of the stream and of the reference.

    Args:
        counts: (G,) number of images of the stream by bin.
        reference: (M,) bins of the reference.
        labels: (M,) 0 or 1.
        seed: Seed of the bootstrap.

    Returns:
        The estimate; None if the stream is empty, the reference has too few images of a class, or does not separate
        them.
    """
    if not counts.sum() or min(labels.sum(), len(labels) - labels.sum()) < MIN_CLASS:
        return None
    rng = np.random.default_rng(seed)
    by_class = np.stack([np.bincount(reference[labels == label], minlength=BINS) for label in (0, 1)])
    if _auc(*by_class) < MIN_AUC:
        return None
    # A resample of the reference is drawn within each class: the estimate does not depend on their shares.
    drawn = [rng.multinomial(row.sum(), row / row.sum(), size=RESAMPLES) for row in by_class]
    negatives, positives = (np.vstack([row, more]).astype(float) for row, more in zip(by_class, drawn, strict=True))
    stream = np.vstack([counts, rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)]).astype(float)
    shares = _solve(stream, _recalibrate(negatives, positives), positives.sum(axis=1) / (len(labels)))
    low, high = np.quantile(shares[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Prevalence(float(shares[0]), float(min(low, shares[0])), float(max(high, shares[0])))


def _auc(negatives: NDArray[np.int64], positives: NDArray[np.int64]) -> float:
    """ROC-AUC of counts (G,)."""
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / (negatives.sum() * positives.sum()))


def _recalibrate(negatives: FloatArray, positives: FloatArray) -> FloatArray:
    """Return the probability of class 1 by bin (R, G) of the logistic curve that fits the counts (R, G)."""
    centers = (np.arange(BINS) + 0.5) * (2 * LOGIT_LIMIT / BINS) - LOGIT_LIMIT
    total = negatives + positives
    intercept, slope = np.zeros(len(total)), np.ones(len(total))
    for _ in range(NEWTON_STEPS):
        p = expit(intercept[:, None] + slope[:, None] * centers)
        residual, weight = positives - total * p, total * p * (1 - p)
        gradient = residual.sum(axis=1), residual @ centers - RIDGE * (slope - 1)
        a, b, c = weight.sum(axis=1) + RIDGE, weight @ centers, weight @ centers**2 + RIDGE
        determinant = a * c - b**2
        step = (c * gradient[0] - b * gradient[1]) / determinant, (a * gradient[1] - b * gradient[0]) / determinant
        intercept, slope = intercept + np.clip(step[0], -2, 2), slope + np.clip(step[1], -1, 1)
    return np.asarray(expit(intercept[:, None] + slope[:, None] * centers))


def _solve(counts: FloatArray, probabilities: FloatArray, prior: FloatArray) -> FloatArray:
    """Return the share of positives (R,) of the highest likelihood.

    Args:
        counts: (R, G) of the stream.
        probabilities: (R, G) of class 1 by bin.
        prior: (R,) share of positives to which the probabilities belong.
    """
    p = np.clip(probabilities, 1e-9, 1 - 1e-9)
    ratio1, ratio0 = p / prior[:, None], (1 - p) / (1 - prior[:, None])
    low, high = np.zeros(len(counts)), np.ones(len(counts))
    for _ in range(BISECTIONS):
        middle = ((low + high) / 2)[:, None]
        slope = (counts * (ratio1 - ratio0) / (middle * ratio1 + (1 - middle) * ratio0)).sum(axis=1)
        low, high = np.where(slope > 0, middle[:, 0], low), np.where(slope > 0, high, middle[:, 0])
    return (low + high) / 2

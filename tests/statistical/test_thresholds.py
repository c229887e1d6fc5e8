"""The threshold that ships has a higher MCC on new rows than the threshold of highest MCC of the same rows."""

import numpy as np
import pytest
from scipy.special import expit

from streetvision.eval.counts import threshold_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import threshold_for_prevalence

DRAWS, POPULATION = 40, 100_000
FAMILIES = {
    "normal": (1.0, False),
    "wide positives": (1.6, False),
    "narrow positives": (0.7, False),
    "heavy tails": (1.0, True),
}
SIZES = {"120 images": (120, 1), "400 images": (400, 1), "50 groups of 20": (50, 20)}


def draw(rng, n, frames, *, distance, prevalence, spread, heavy):
    """Scores of n groups with the same number of frames; half of the variance is common to a group."""
    labels = rng.random(n) < prevalence
    labels[:2], labels[2:4] = True, False
    noise = (lambda size: rng.standard_t(4, size) / np.sqrt(2)) if heavy else rng.standard_normal
    labels = labels.repeat(frames)
    effect = noise(n * frames) if frames == 1 else np.sqrt(0.5) * (noise(n).repeat(frames) + noise(n * frames))
    scores = np.where(labels, distance + spread * effect, effect)
    return labels, expit(distance * (scores - distance / 2)), np.arange(n).repeat(frames).tolist()


def lost_mcc(distance, prevalence, family, size):
    """How far both thresholds are below the best of the population: highest MCC, bagged; means over draws."""
    spread, heavy = FAMILIES[family]
    settings = {"distance": distance, "prevalence": prevalence, "spread": spread, "heavy": heavy}
    labels, p, _ = draw(np.random.default_rng(1), POPULATION, 1, **settings)
    population = threshold_counts(labels, p)
    best = float(mcc(population.at(threshold_for_prevalence(labels, p))))
    lost = np.empty((DRAWS, 2))
    rng = np.random.default_rng(2)
    for one in lost:
        labels, p, groups = draw(rng, *SIZES[size], **settings)
        predictions = Predictions(labels, p, groups)
        thresholds = [threshold_for_prevalence(labels, p), bagged_threshold(predictions)]
        one[:] = best - np.asarray(mcc(population.at(thresholds)))
    return lost.mean(axis=0)


@pytest.mark.parametrize("size", SIZES)
def test_bagged_threshold_loses_less_mcc(size):
    lost = np.array(
        [
            lost_mcc(distance, prevalence, family, size)
            for distance in (1.0, 2.5, 4.0)
            for prevalence in (0.15, 0.4)
            for family in FAMILIES
        ]
    )
    highest, bagged = lost.mean(axis=0)
    assert bagged < 0.75 * highest
    assert (lost[:, 1] < lost[:, 0] + 0.005).all()

"""Metrics on VAL_TEST after active labeling: the interval covers the metric of the whole pool."""

from hashlib import sha256
from pathlib import Path

import numpy as np
from scipy.special import expit

from streetvision.contracts.split_contracts import Index, Row, Split
from streetvision.data.splitting.partition import make_partition
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.labeling.queue import Candidate, plan_queue

POOLS, IMAGES, LABELS = 150, 2400, 1200
"""With 500 pools, the coverage was 0.946."""
FRACTIONS = {Split.TRAIN: 0.6, Split.VAL_SELECT: 0.1, Split.VAL_CALIB: 0.1, Split.VAL_TEST: 0.2}


def simulate(seed):
    """Whether the interval covers MCC of the pool, and MCC of the chosen images minus that of the pool."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(IMAGES) < 0.3).astype(int)
    scores = expit(1.5 * rng.normal(size=IMAGES) + 3 * (labels - 0.5))
    truth = float(mcc(confusion_counts(labels, scores > 0.5)))
    # The model asks for what looks like class 1 or is uncertain, so the chosen images have other classes than the pool.
    order = np.argsort(np.where(scores > 0.3, 0, 1) + rng.random(IMAGES) / 2, kind="stable")
    digest = [sha256(f"{seed} {number}".encode()).hexdigest() for number in range(IMAGES)]
    candidates = [Candidate(digest[i], f"/{i}.jpg", abstained=True) for i in order]
    queue = plan_queue(candidates, None, strategy="abstained", count=LABELS, seed=seed)
    rows = []
    for image in queue.images:
        number = int(image.path[1:-4])
        rows.append(Row(image.path, int(labels[number]), image.sha256, 64, 64, 0.5, queue=image.queue))
    partition = make_partition(Index(Path("/"), ("None", "Roadwork"), tuple(rows)), fractions=FRACTIONS, seed=seed)
    test = [int(row.path[1:-4]) for row in partition.rows(Split.VAL_TEST)]
    interval = bootstrap_intervals(Predictions(labels[test], scores[test], None), Resampling(300, seed=seed))["mcc"]
    chosen = [int(row.path[1:-4]) for row in rows if row.train_only]
    bias = float(mcc(confusion_counts(labels[chosen], scores[chosen] > 0.5))) - truth
    return interval.low <= truth <= interval.high, bias


def test_the_interval_covers_the_metric_of_the_pool(record_property):
    covered, bias = np.array([simulate(seed) for seed in range(POOLS)]).T
    record_property("coverage", covered.mean())
    record_property("bias_of_chosen_images", bias.mean())
    assert 0.95 - 3 * np.sqrt(0.05 * 0.95 / POOLS) <= covered.mean() < 1, covered.mean()
    assert abs(bias.mean()) > 0.05, bias.mean()  # otherwise the simulation proves nothing

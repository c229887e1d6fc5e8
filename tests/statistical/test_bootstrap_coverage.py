"""Coverage of 95 % intervals on 1,000 simulated data sets per setting."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from streetvision.eval.bootstrap import bootstrap_intervals, paired_difference
from streetvision.eval.counts import Counts
from streetvision.eval.metrics import mcc
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling

DATA_SETS = 1000
PREVALENCE = 0.4


def true_values(distance):
    """MCC at threshold 0.5 and ROC-AUC of scores N(-distance/2, 1) and N(+distance/2, 1) behind a sigmoid."""
    hit = norm.cdf(distance / 2)
    rates = Counts(
        tp=PREVALENCE * hit, fn=PREVALENCE * (1 - hit), tn=(1 - PREVALENCE) * hit, fp=(1 - PREVALENCE) * (1 - hit)
    )
    return {"mcc": float(mcc(rates)), "roc_auc": norm.cdf(distance / np.sqrt(2))}


def coverage(simulate, truth):
    """The share of data sets whose interval holds the truth, for each metric in `truth`."""
    held = dict.fromkeys(truth, 0)
    for seed in range(DATA_SETS):
        labels, probabilities, groups = simulate(np.random.default_rng(seed))
        found = bootstrap_intervals(Predictions(labels, probabilities, groups), Resampling(500, seed=seed))
        for name, value in truth.items():
            held[name] += bool(found[name].low <= value <= found[name].high)
    return {name: count / DATA_SETS for name, count in held.items()}


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("area", [0.86, 0.92, 0.99])
def test_independent_rows(area, n, record_property):
    distance = norm.ppf(area) * np.sqrt(2)

    def simulate(rng):
        labels = rng.random(n) < PREVALENCE
        return labels, expit(rng.normal(size=n) + distance * (labels - 0.5)), None

    found = coverage(simulate, true_values(distance))
    record_property("coverage", found)
    assert all(0.92 <= share <= 0.98 for share in found.values()), found


def test_tracks_of_thirty_frames(record_property):
    tracks, frames, distance = 50, 30, norm.ppf(0.92) * np.sqrt(2)
    groups = np.repeat(np.arange(tracks), frames).tolist()

    def simulate(rng):
        of_track = rng.random(tracks) < PREVALENCE
        common = np.sqrt(0.95) * rng.normal(size=tracks) + distance * (of_track - 0.5)
        scores = np.repeat(common, frames) + np.sqrt(0.05) * rng.normal(size=tracks * frames)
        return np.repeat(of_track, frames), expit(scores), groups

    found = coverage(simulate, true_values(distance))
    record_property("coverage", found)
    assert all(0.92 <= share <= 0.98 for share in found.values()), found


def test_equally_good_models_differ_significantly_one_time_in_twenty(record_property):
    n, distance = 400, norm.ppf(0.92) * np.sqrt(2)
    alarms = {"mcc": 0, "roc_auc": 0, "brier": 0}
    for seed in range(DATA_SETS):
        rng = np.random.default_rng(seed)
        labels = rng.random(n) < PREVALENCE
        common = np.sqrt(0.7) * rng.normal(size=n) + distance * (labels - 0.5)
        a, b = (Predictions(labels, expit(common + np.sqrt(0.3) * rng.normal(size=n))) for _ in range(2))
        found = paired_difference(a, b, Resampling(n_resamples=300, seed=seed))
        for name in alarms:
            alarms[name] += found[name].p_value < 0.05
    record_property("alarms", alarms)
    assert all(0.02 <= count / DATA_SETS <= 0.08 for count in alarms.values()), alarms

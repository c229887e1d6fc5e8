"""False alarms of the monitor and coverage of its bounds in simulated streams."""

import numpy as np

from streetvision.monitoring.martingale import BINS, ExchangeabilityTest, bin_values
from streetvision.monitoring.prevalence import BINS as LOGIT_BINS
from streetvision.monitoring.prevalence import estimate_prevalence, logit_bins
from streetvision.monitoring.risk import log_evidence_above

ALPHA = 0.1


def upper(count):
    """Alarms that a true rate of ALPHA exceeds once in a thousand times."""
    from scipy.stats import binom

    return binom.ppf(0.999, count, ALPHA)


def test_streams_without_a_shift_raise_alarms_at_most_as_often_as_promised():
    rng, alarms, streams = np.random.default_rng(0), 0, 150
    for stream in range(streams):
        # A reference of 50: ranks in it alone would alarm in nearly every stream.
        reference, values = rng.standard_t(3, size=50), rng.standard_t(3, size=2000)
        test = ExchangeabilityTest(stream, np.bincount(bin_values(reference, -9, 9), minlength=BINS))
        test.update(bin_values(values, -9, 9))
        alarms += test.log_max >= -np.log(ALPHA)
    assert alarms <= upper(streams)


def test_a_risk_at_its_limit_is_withdrawn_at_most_as_often_as_promised():
    rng, limit, streams = np.random.default_rng(1), 0.05, 400
    errors = np.cumsum(rng.random((streams, 1500)) < limit, axis=1)
    evidence = log_evidence_above(errors, np.arange(1, 1501)[None], limit)
    assert (evidence.max(axis=1) >= -np.log(ALPHA)).sum() <= upper(streams)


def test_prevalence_is_in_its_interval_and_within_three_points():
    rng, misses, worst = np.random.default_rng(2), 0, []
    for run in range(60):
        share = rng.uniform(0.1, 0.5)
        labels, stream = (rng.random(1000) < 0.3).astype(np.int64), rng.random(2000) < share
        margins = [3.0 * rng.normal(np.where(y, 1.5, -1.5), 1) for y in (labels, stream)]
        reference, bins = (logit_bins(1 / (1 + np.exp(-m))) for m in margins)
        found = estimate_prevalence(np.bincount(bins, minlength=LOGIT_BINS), reference, labels, seed=run)
        misses += not found.low <= share <= found.high
        worst.append(abs(found.estimate - share))
    assert misses <= 9  # 3 expected
    assert np.quantile(worst, 0.9) <= 0.03

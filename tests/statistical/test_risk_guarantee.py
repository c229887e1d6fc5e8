"""The risk guarantee: 2,000 simulated calibration sets per setting, evaluated by their true risk."""

import numpy as np
import pytest
from scipy.stats import norm

from streetvision.calibration.config import RiskConfig
from streetvision.calibration.risk_control import ScoredRows, certify

SETS = 2000
PREVALENCE, DISTANCE = 0.4, norm.ppf(0.92) * np.sqrt(2)
CONFIG = RiskConfig(alpha=0.05, delta=0.1)
SAMPLING_ERROR = 3 * np.sqrt(CONFIG.delta * (1 - CONFIG.delta) / SETS)
"""Three standard deviations of the share of sets with a violation."""


def shares(lo, hi):
    """P(margin < lo) and P(margin >= hi), of positives and of negatives: normal, DISTANCE apart."""
    centers = {"positive": DISTANCE / 2, "negative": -DISTANCE / 2}
    return {name: (norm.cdf(lo - c), norm.sf(hi - c)) for name, c in centers.items()}


def true_risk(kind, lo, hi):
    probabilities = shares(lo, hi)
    fn, tp = probabilities["positive"]
    tn, fp = probabilities["negative"]
    if kind == "fnr":
        return fn / (fn + tp)
    if kind == "fpr":
        return fp / (tn + fp)
    wrong = PREVALENCE * fn + (1 - PREVALENCE) * fp
    return wrong / (wrong + PREVALENCE * tp + (1 - PREVALENCE) * tn)


def abstained(lo, hi):
    probabilities = shares(lo, hi)
    return 1 - PREVALENCE * sum(probabilities["positive"]) - (1 - PREVALENCE) * sum(probabilities["negative"])


def best_possible():
    """Abstention of the rule with FNR alpha when both distributions are known."""
    hi = norm.isf(CONFIG.alpha, loc=-DISTANCE / 2)
    found = norm.sf(hi - DISTANCE / 2)
    lo = norm.ppf(found * CONFIG.alpha / (1 - CONFIG.alpha)) + DISTANCE / 2
    return abstained(min(lo, hi), hi)


def independent(rng, n):
    truth = rng.random(n) < PREVALENCE
    return ScoredRows(rng.normal(size=n) + DISTANCE * (truth - 0.5), truth, [None] * n)


def tracks(rng, n, frames=2):
    """Frames of one track share their label and nine tenths of their variance."""
    of_track = rng.random(n // frames) < PREVALENCE
    common = np.sqrt(0.9) * rng.normal(size=of_track.size) + DISTANCE * (of_track - 0.5)
    margin = np.repeat(common, frames) + np.sqrt(0.1) * rng.normal(size=of_track.size * frames)
    names = [f"track{i // frames}" for i in range(margin.size)]
    return ScoredRows(margin, np.repeat(of_track, frames), names)


def simulate(draw, n, kind):
    """True risk and abstention of every certified set."""
    config = RiskConfig(kind=kind, alpha=CONFIG.alpha, delta=CONFIG.delta)
    certificates = [certify(draw(np.random.default_rng(seed), n), config, seed=seed) for seed in range(SETS)]
    bounds = [(c.lo, c.hi) for c in certificates if c.lo is not None]
    return [true_risk(kind, *pair) for pair in bounds], [abstained(*pair) for pair in bounds]


@pytest.mark.parametrize("kind", ["fnr", "fpr", "error"])
@pytest.mark.parametrize("draw", [independent, tracks])
@pytest.mark.parametrize("n", [100, 500, 2000])
def test_the_risk_is_above_alpha_in_at_most_delta_of_the_sets(n, draw, kind, record_property):
    risks, _ = simulate(draw, n, kind)
    violations = float(np.sum(np.array(risks) > CONFIG.alpha) / SETS)
    record_property("violations", violations)
    record_property("certified", len(risks) / SETS)
    assert violations <= CONFIG.delta + SAMPLING_ERROR
    print(f"{kind} {draw.__name__} n={n}: violations {violations:.3f}, certified {len(risks) / SETS:.3f}")  # noqa: T201


@pytest.mark.parametrize(("n", "above"), [(500, 0.12), (2000, 0.05)])
def test_abstention_is_close_to_that_of_the_best_possible_rule(n, above, record_property):
    risks, abstained = simulate(independent, n, "fnr")
    record_property("abstention", float(np.mean(abstained)))
    record_property("best_possible", best_possible())
    assert len(risks) == SETS
    assert np.mean(abstained) <= best_possible() + above
    print(f"n={n}: abstention {np.mean(abstained):.3f}, best possible {best_possible():.3f}")  # noqa: T201


def test_treating_frames_of_a_track_as_independent_would_violate_the_guarantee():
    """The reason for drawing one frame per track: with all frames, the risk exceeds alpha far too often."""
    sets = [tracks(np.random.default_rng(seed), 2000, frames=20) for seed in range(500)]
    found = [certify(rows._replace(groups=[None] * 2000), CONFIG, seed=0) for rows in sets]
    risks = [true_risk("fnr", c.lo, c.hi) for c in found if c.lo is not None]
    assert np.sum(np.array(risks) > CONFIG.alpha) / 500 > 2 * CONFIG.delta

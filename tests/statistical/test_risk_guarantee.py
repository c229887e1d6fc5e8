"""Is the risk kept? Two thousand simulated calibration sets a setting, judged by their true risk."""

import numpy as np
import pytest
from scipy.stats import norm

from streetvision.calibration.config import RiskConfig
from streetvision.calibration.risk_control import ScoredRows, certify

SETS = 2000
PREVALENCE, DISTANCE = 0.4, norm.ppf(0.92) * np.sqrt(2)
CONFIG = RiskConfig(alpha=0.05, delta=0.1)
SAMPLING_ERROR = 3 * np.sqrt(CONFIG.delta * (1 - CONFIG.delta) / SETS)
"""Of a share of sets whose expectation is delta."""


def shares(lo, hi):
    """P(margin < lo) and P(margin >= hi), of positives and of negatives: normal, DISTANCE apart."""
    centres = {"positive": DISTANCE / 2, "negative": -DISTANCE / 2}
    return {name: (norm.cdf(lo - c), norm.sf(hi - c)) for name, c in centres.items()}


def true_risk(kind, lo, hi):
    of = shares(lo, hi)
    missed, found = of["positive"]
    cleared, alarmed = of["negative"]
    if kind == "fnr":
        return missed / (missed + found)
    if kind == "fpr":
        return alarmed / (cleared + alarmed)
    wrong = PREVALENCE * missed + (1 - PREVALENCE) * alarmed
    return wrong / (wrong + PREVALENCE * found + (1 - PREVALENCE) * cleared)


def abstained(lo, hi):
    of = shares(lo, hi)
    return 1 - PREVALENCE * sum(of["positive"]) - (1 - PREVALENCE) * sum(of["negative"])


def best_possible():
    """What a miss rate of alpha costs when both laws are known."""
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
    """The true risk and what is handed over, of every set that was certified."""
    config = RiskConfig(kind=kind, alpha=CONFIG.alpha, delta=CONFIG.delta)
    found = [certify(draw(np.random.default_rng(seed), n), config, seed=seed) for seed in range(SETS)]
    ends = [(c.lo, c.hi) for c in found if c.lo is not None]
    return [true_risk(kind, *end) for end in ends], [abstained(*end) for end in ends]


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
def test_hardly_more_is_handed_over_than_the_best_possible_rule_does(n, above, record_property):
    risks, abstained = simulate(independent, n, "fnr")
    record_property("abstention", float(np.mean(abstained)))
    record_property("best_possible", best_possible())
    assert len(risks) == SETS
    assert np.mean(abstained) <= best_possible() + above
    print(f"n={n}: handed over {np.mean(abstained):.3f}, best possible {best_possible():.3f}")  # noqa: T201


def test_taking_every_frame_of_a_track_for_a_thing_of_its_own_would_break_the_promise():
    """The reason for drawing one frame a track: with all frames counted the risk is above alpha far too often."""
    sets = [tracks(np.random.default_rng(seed), 2000, frames=20) for seed in range(500)]
    found = [certify(one._replace(groups=[None] * 2000), CONFIG, seed=0) for one in sets]
    risks = [true_risk("fnr", c.lo, c.hi) for c in found if c.lo is not None]
    assert np.sum(np.array(risks) > CONFIG.alpha) / 500 > 2 * CONFIG.delta

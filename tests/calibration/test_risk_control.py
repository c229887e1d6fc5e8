import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from streetvision.calibration.config import RiskConfig
from streetvision.calibration.risk_control import (
    CERTIFIERS,
    ScoredRows,
    abstained,
    certify,
    min_accepted,
    one_per_group,
)


def draw(n=1000, *, distance=2.0, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return ScoredRows(rng.normal(size=n) + distance * (truth - 0.5), truth, groups or [None] * n)


def risk_of(rows, lo, hi, kind):
    """The risk among accepted rows, in-sample."""
    accepted = ~abstained(rows.margin, lo, hi)
    predicted = rows.margin >= hi
    wrong = accepted & (predicted != rows.truth)
    at_risk = {"fnr": rows.truth, "fpr": ~rows.truth, "error": np.ones(len(predicted), bool)}[kind] & accepted
    return (wrong & at_risk).sum() / max(at_risk.sum(), 1)


def test_the_lower_bound_equals_that_of_a_sequential_search():
    """Raise lo from the lowest positive, test each step, and stop at the first failure."""
    config, rows = RiskConfig(), draw()
    found = certify(rows, config, seed=0)
    negatives = np.sort(rows.margin[~rows.truth])
    assert np.mean(negatives >= found.hi) <= config.alpha < np.mean(negatives >= negatives[negatives < found.hi][-1])
    positives = np.sort(rows.margin[rows.truth])
    hits = np.sum(positives >= found.hi)
    expected = None
    for candidate in positives[positives < found.hi]:
        misses = np.sum(positives < candidate)
        if binom.cdf(misses, misses + hits, config.alpha) > config.delta:
            break
        expected = candidate
    assert found.lo == expected


@pytest.mark.parametrize("kind", CERTIFIERS)
def test_the_in_sample_risk_is_at_most_alpha(kind):
    rows = draw(4000, distance=2.5)
    found = certify(rows, RiskConfig(kind=kind), seed=0)
    assert found.lo < found.hi
    assert risk_of(rows, found.lo, found.hi, kind) <= 0.055
    assert "<= 0.05 among accepted images with confidence 0.9" in found.reason


def test_fpr_is_fnr_with_the_classes_exchanged():
    rows = draw()
    fpr = certify(rows, RiskConfig(kind="fpr"), seed=0)
    fnr = certify(ScoredRows(-rows.margin, ~rows.truth, rows.groups), RiskConfig(), seed=0)
    assert (fpr.lo, fpr.hi) == pytest.approx((-fnr.hi, -fnr.lo), abs=1e-9)
    assert np.array_equal(rows.margin >= fpr.hi, -rows.margin < fnr.lo)


@pytest.mark.parametrize("kind", CERTIFIERS)
def test_there_is_no_abstention_for_separated_classes(kind):
    rows = draw(1000, distance=40.0)
    found = certify(rows, RiskConfig(kind=kind), seed=0)
    assert not abstained(rows.margin, found.lo, found.hi).any()
    assert risk_of(rows, found.lo, found.hi, kind) <= 0.05


@pytest.mark.parametrize(("kind", "units"), [("fnr", "positives"), ("fpr", "negatives"), ("error", "rows")])
def test_too_few_rows_are_reported(kind, units):
    found = certify(draw(60), RiskConfig(kind=kind), seed=0)
    assert (found.lo, found.hi) == (None, None)
    assert f"cannot be certified with {found.n} {units}" in found.reason
    assert "at least 45" in found.reason


def test_at_least_45_accepted_units_without_an_error_are_required():
    assert min_accepted(RiskConfig()) == 45
    assert 0.95**45 <= 0.1 < 0.95**44
    margin = np.concatenate([np.full(44, 5.0), np.full(100, -5.0)])
    too_few = ScoredRows(margin, margin > 0, [None] * 144)
    assert certify(too_few, RiskConfig(), seed=0).lo is None
    enough = ScoredRows(np.append(margin, 5.0), np.append(margin > 0, True), [None] * 145)
    assert certify(enough, RiskConfig(), seed=0).lo is not None


@pytest.mark.parametrize("truth", [np.ones(200, bool), np.zeros(200, bool)])
@pytest.mark.parametrize("kind", ["fnr", "fpr"])
def test_one_class_alone_is_not_certified(kind, truth):
    rows = ScoredRows(np.random.default_rng(0).normal(size=200), truth, [None] * 200)
    assert certify(rows, RiskConfig(kind=kind), seed=0).lo is None


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_rows_certify_no_error_rate(n):
    found = certify(draw(n), RiskConfig(kind="error"), seed=0)
    assert (found.lo, found.hi, found.n) == (None, None, n)
    assert f"cannot be certified with {n} rows" in found.reason


def test_a_group_counts_once():
    rows = draw(2000)
    groups = [f"track{i // 10}" for i in range(2000)]
    truth = np.repeat(rows.truth[::10], 10)
    found = certify(ScoredRows(rows.margin, truth, groups), RiskConfig(), seed=0)
    assert found.n == truth.sum() / 10


def test_negatives_in_a_group_with_positives_do_not_influence_the_upper_bound():
    """They depend on the positives of their group."""
    margin = np.concatenate([np.arange(10.0), np.full(60, 100.0), [100.0, 50.0]])
    truth = margin == 100.0
    together = ScoredRows(margin, truth, [*[None] * 70, "a", "a"])
    apart = together._replace(groups=[*[None] * 70, "a", "b"])
    assert certify(together, RiskConfig(), seed=0).hi == pytest.approx(9.0)
    assert certify(apart, RiskConfig(), seed=0).hi == pytest.approx(50.0)


@given(
    groups=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=40),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_one_eligible_row_of_each_group(groups, seed, data):
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    drawn = one_per_group(groups, eligible, seed)
    assert eligible[drawn].all()
    named = [groups[i] for i in drawn if groups[i] is not None]
    assert len(named) == len(set(named))
    assert set(named) == {g for g, e in zip(groups, eligible, strict=True) if e and g is not None}
    assert sum(groups[i] is None for i in drawn) == sum(g is None and e for g, e in zip(groups, eligible, strict=True))


@given(st.integers(0, 30), st.sampled_from(sorted(CERTIFIERS)))
def test_ties_are_accepted_together(seed, kind):
    rows = draw(600, seed=seed)
    rounded = rows._replace(margin=np.round(rows.margin))
    found = certify(rounded, RiskConfig(kind=kind, alpha=0.2), seed=0)
    if found.lo is not None:
        assert risk_of(rounded, found.lo, found.hi, kind) <= 0.2


def test_the_policy_abstains_on_rows_at_the_center_if_accepting_them_fails():
    """Accepting all rows except those at 0 passes the test, and accepting all rows does not."""
    rng, n = np.random.default_rng(2077), 600
    truth = rng.random(n) < 0.5
    margin = np.where(truth, 4, -4) + np.round(rng.normal(size=n)) * 2.0
    doubtful = rng.random(n) < 0.02
    margin[doubtful], truth[doubtful] = 0.0, rng.random(doubtful.sum()) < 0.5
    others = ~doubtful & (margin == 0)
    margin[others] = 2 * np.sign(rng.normal(size=others.sum()))
    found = certify(ScoredRows(margin, truth, [None] * n), RiskConfig(kind="error"), seed=2077)
    assert (found.lo, found.hi) == (0.0, np.nextafter(0.0, 1.0))
    assert np.array_equal(abstained(margin, found.lo, found.hi), margin == 0)
    assert found.n == 400
    assert "certified with 400 rows" in found.reason

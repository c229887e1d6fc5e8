import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from streetvision.calibration.config import RiskConfig
from streetvision.calibration.risk_control import KINDS, ScoredRows, abstained, certify, min_accepted, one_per_group


def draw(n=1000, *, distance=2.0, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return ScoredRows(rng.normal(size=n) + distance * (truth - 0.5), truth, groups or [None] * n)


def risk_of(rows, lo, hi, kind):
    """The risk among the answered on the rows themselves."""
    answered = ~abstained(rows.margin, lo, hi)
    says = rows.margin >= hi
    wrong = answered & (says != rows.truth)
    at_risk = {"fnr": rows.truth, "fpr": ~rows.truth, "error": np.ones(len(says), bool)}[kind] & answered
    return (wrong & at_risk).sum() / max(at_risk.sum(), 1)


def test_the_lower_end_is_where_a_slow_walk_stops():
    """Raise lo from the lowest positive, test each step, and stop at the first that fails."""
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_themselves_keep_the_risk(kind):
    rows = draw(4000, distance=2.5)
    found = certify(rows, RiskConfig(kind=kind), seed=0)
    assert found.lo < found.hi
    assert risk_of(rows, found.lo, found.hi, kind) <= 0.055
    assert "<= 0.05 among the answered with 0.9 confidence" in found.reason


def test_false_alarms_are_misses_in_the_mirror():
    rows = draw()
    fpr = certify(rows, RiskConfig(kind="fpr"), seed=0)
    fnr = certify(ScoredRows(-rows.margin, ~rows.truth, rows.groups), RiskConfig(), seed=0)
    assert (fpr.lo, fpr.hi) == pytest.approx((-fnr.hi, -fnr.lo), abs=1e-9)
    assert np.array_equal(rows.margin >= fpr.hi, -rows.margin < fnr.lo)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_handed_over_where_the_classes_lie_apart(kind):
    rows = draw(1000, distance=40.0)
    found = certify(rows, RiskConfig(kind=kind), seed=0)
    assert not abstained(rows.margin, found.lo, found.hi).any()
    assert risk_of(rows, found.lo, found.hi, kind) <= 0.05


@pytest.mark.parametrize(("kind", "what"), [("fnr", "positives"), ("fpr", "negatives"), ("error", "rows")])
def test_too_few_rows_are_told_plainly(kind, what):
    found = certify(draw(60), RiskConfig(kind=kind), seed=0)
    assert (found.lo, found.hi) == (None, None)
    assert f"cannot be certified with {found.n} {what}" in found.reason
    assert "at least 45" in found.reason


def test_forty_five_without_an_error_are_the_least():
    assert min_accepted(RiskConfig()) == 45
    assert 0.95**45 <= 0.1 < 0.95**44
    margin = np.concatenate([np.full(44, 5.0), np.full(100, -5.0)])
    almost = ScoredRows(margin, margin > 0, [None] * 144)
    assert certify(almost, RiskConfig(), seed=0).lo is None
    enough = ScoredRows(np.append(margin, 5.0), np.append(margin > 0, True), [None] * 145)
    assert certify(enough, RiskConfig(), seed=0).lo is not None


@pytest.mark.parametrize("truth", [np.ones(200, bool), np.zeros(200, bool)])
@pytest.mark.parametrize("kind", ["fnr", "fpr"])
def test_one_class_alone_certifies_nothing(kind, truth):
    rows = ScoredRows(np.random.default_rng(0).normal(size=200), truth, [None] * 200)
    assert certify(rows, RiskConfig(kind=kind), seed=0).lo is None


@pytest.mark.parametrize("n", [1, 2])
def test_rows_too_few_to_set_a_middle_aside_certify_no_error_rate(n):
    found = certify(draw(n), RiskConfig(kind="error"), seed=0)
    assert (found.lo, found.hi, found.n) == (None, None, n)
    assert f"cannot be certified with {n} rows" in found.reason


def test_a_track_counts_once():
    rows = draw(2000)
    of_ten = [f"track{i // 10}" for i in range(2000)]
    truth = np.repeat(rows.truth[::10], 10)
    found = certify(ScoredRows(rows.margin, truth, of_ten), RiskConfig(), seed=0)
    assert found.n == truth.sum() / 10


def test_negatives_of_a_group_with_positives_have_no_say_in_the_upper_end():
    """They may share what the positives of that group share."""
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


@given(st.integers(0, 30), st.sampled_from(sorted(KINDS)))
def test_ties_are_answered_together(seed, kind):
    rows = draw(600, seed=seed)
    rough = rows._replace(margin=np.round(rows.margin))
    found = certify(rough, RiskConfig(kind=kind, alpha=0.2), seed=0)
    if found.lo is not None:
        assert risk_of(rough, found.lo, found.hi, kind) <= 0.2


def test_rows_on_the_middle_are_handed_over_where_answering_them_fails():
    """Answering all but the rows at 0 passes, and answering those too does not."""
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

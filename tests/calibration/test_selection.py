import numpy as np
import pytest
from scipy.special import expit

from streetvision.calibration import selection
from streetvision.calibration.calibrators import CALIBRATORS, Ensemble, restore_calibrator
from streetvision.calibration.config import METHODS, Phase5Config, PreferenceConfig
from streetvision.calibration.crossfit import CalibrationSet, assign_folds
from streetvision.calibration.ensemble import blend, blend_out_of_fold, ensemble_weights, out_of_fold
from streetvision.calibration.selection import apply_guards, evaluate_candidate, select_calibrator, select_retrained
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import CalibratorState
from streetvision.eval.metrics import ece, mcc, nll


def draw(n=400, *, temperature=1.0, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 3, n)
    labels = (rng.random(n) < expit(margin / temperature)).astype(np.int64)
    return CalibrationSet(np.stack([0 * margin, margin], axis=1).astype(np.float32), labels, groups or [None] * n)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"mac_cal"}))
def test_every_method_gives_a_calibrator_that_passes_through_its_state(method):
    rows = draw(150, temperature=3.0)
    choice = select_calibrator(rows, Phase5Config(method=method, folds=2))
    p = choice.calibrator.probabilities(rows.logits)
    restored = restore_calibrator(CalibratorState(name=choice.name, state=choice.calibrator.state()))
    assert np.array_equal(restored.probabilities(rows.logits), p)
    assert np.all((p >= 0) & (p <= 1))
    assert np.all(np.diff(p[np.argsort(rows.logits[:, 1])]) >= -1e-12)
    assert choice.table[0].name == "none"
    assert (choice.name == "ensemble") == bool(choice.weights)


def test_a_calibrator_taken_by_name_is_that_calibrator():
    rows = draw(temperature=3.0)
    for name in CALIBRATORS:
        choice = select_calibrator(rows, Phase5Config(method=name))
        assert choice.name == name
        assert [c.name for c in choice.table] == list(dict.fromkeys(["none", name]))


def test_retrained_scores_stand_as_they_are_beside_the_tiers_on_the_old_ones():
    base = draw(temperature=3.0)
    better = CalibrationSet(base.logits / 3, base.labels, base.groups)
    choice = select_retrained(better, base, Phase5Config(method="mac_cal"))
    assert choice.name == "none"
    assert [c.name for c in choice.table[:2]] == ["none", "isotonic"]
    before, after = choice.table[0], choice.table[-1]
    assert (before.nll, after.name) == (select_calibrator(base, Phase5Config()).table[0].nll, "mac_cal")
    assert after.nll == nll(base.labels, choice.calibrator.probabilities(better.logits))
    assert after.nll < before.nll


def test_scores_that_need_nothing_stay_as_they_are():
    """At twenty draws of well calibrated scores, leaving them alone wins more often than not."""
    chosen = [select_calibrator(draw(300, seed=seed), Phase5Config()).name for seed in range(20)]
    assert chosen.count("none") > 10


def test_overconfident_scores_are_calibrated():
    for seed in range(5):
        choice = select_calibrator(draw(400, temperature=3.0, seed=seed), Phase5Config())
        assert choice.name == "ensemble"
        assert choice.table[-1].nll < choice.table[0].nll


def test_tier_two_is_left_alone_where_tier_one_keeps_the_limit():
    rows = draw(temperature=3.0)
    tried = {c.name for c in select_calibrator(rows, Phase5Config(ece_limit=0.9)).table}
    assert tried == {"none", "isotonic", "temperature", "ensemble"}
    assert {c.name for c in select_calibrator(rows, Phase5Config()).table} == {*tried, "platt", "beta", "spline"}


def test_the_specifications_rule_takes_the_lowest_ece():
    choice = select_calibrator(draw(temperature=3.0), Phase5Config(selection="ece"))
    allowed = [c for c in choice.table if c.rejected is None]
    assert choice.name == min(allowed, key=lambda c: c.ece).name


class TestGuards:
    rows = draw(temperature=3.0)
    before = evaluate_candidate("none", rows.labels, expit(rows.logits[:, 1]).astype(np.float64))

    def test_a_fall_of_mcc_beyond_the_guard_rejects(self):
        worse = self.before.model_copy(update={"name": "x", "mcc": self.before.mcc - 0.021})
        assert "MCC falls" in apply_guards(worse, self.before, Phase5Config()).rejected
        assert apply_guards(worse, self.before, Phase5Config(mcc_guard=0.03)).rejected is None

    def test_a_rise_of_the_debiased_error_rejects(self):
        worse = self.before.model_copy(update={"name": "x", "ece_debiased": self.before.ece_debiased + 0.001})
        assert "debiased ECE rises" in apply_guards(worse, self.before, Phase5Config()).rejected

    def test_a_rejected_ensemble_is_not_chosen(self, monkeypatch):
        def constant(oof, rows, **_):
            return np.full(len(rows.labels), rows.labels.mean())

        monkeypatch.setattr(selection, "blend_out_of_fold", constant)
        choice = select_calibrator(self.rows, Phase5Config())
        assert "MCC falls" in choice.table[-1].rejected
        assert choice.name not in ("ensemble", "none")


def test_figures_of_a_candidate_are_those_of_its_probabilities():
    rows = draw()
    p = expit(rows.logits[:, 1].astype(np.float64))
    found = evaluate_candidate("none", rows.labels, p)
    assert (found.nll, found.ece) == (nll(rows.labels, p), ece(rows.labels, p))
    best = max(mcc_at(rows.labels, p, cut) for cut in np.unique(p))
    assert found.mcc == pytest.approx(best)


def mcc_at(labels, p, cut):
    from streetvision.eval.counts import confusion_counts

    return float(mcc(confusion_counts(labels, p >= cut)))


def test_the_weights_are_those_of_a_slow_search():
    rows = draw(300, temperature=2.0)
    oof = out_of_fold(["none", "platt"], rows, folds=5, seed=0)
    grid = np.linspace(0, 1, 2001)
    slow = grid[np.argmin([nll(rows.labels, blend(oof, {"none": w, "platt": 1 - w})) for w in grid])]
    assert ensemble_weights(oof, rows.labels).get("none", 0.0) == pytest.approx(slow, abs=2e-3)


def test_no_row_has_a_say_in_the_weights_that_it_is_judged_by():
    """Turning a row's label moves the blend of other folds only."""
    rows = draw(200, temperature=2.0)
    oof = out_of_fold(["none", "platt", "isotonic"], rows, folds=4, seed=0)
    fold_of = assign_folds(rows.groups, folds=4, seed=0)
    turned = rows.labels.copy()
    turned[fold_of == 2] = 1 - turned[fold_of == 2]
    before = blend_out_of_fold(oof, rows, folds=4, seed=0)
    after = blend_out_of_fold(oof, CalibrationSet(rows.logits, turned, rows.groups), folds=4, seed=0)
    assert np.array_equal(before[fold_of == 2], after[fold_of == 2])
    assert not np.array_equal(before, after)


class TestPareto:
    rows = draw(temperature=3.0)

    def choice(self, **preference):
        return select_calibrator(
            self.rows, Phase5Config(method="multi_objective", preference=PreferenceConfig(**preference), folds=3)
        )

    def test_nothing_on_the_front_is_beaten_and_everything_off_it_is(self):
        points = self.choice().front
        values = np.array([p.objectives for p in points])
        for point in points:
            beaten = any(np.all(v <= point.objectives) and np.any(v < point.objectives) for v in values)
            assert point.on_front == (not beaten)
        assert sum(p.chosen for p in points) == 1
        assert 1 < sum(p.on_front for p in points) < len(points)

    def test_the_preference_is_heard(self):
        only_nll = self.choice(ece=0.0, mcc_loss=0.0, fnr=0.0)
        chosen = next(p for p in only_nll.front if p.chosen)
        assert chosen.nll == min(p.nll for p in only_nll.front)
        only_ece = next(p for p in self.choice(nll=0.0, mcc_loss=0.0, fnr=0.0).front if p.chosen)
        assert only_ece.ece == min(p.ece for p in only_nll.front)

    def test_what_is_chosen_is_what_is_fitted(self):
        choice = self.choice()
        assert isinstance(choice.calibrator, Ensemble)
        assert choice.calibrator.weights == dict(next(p for p in choice.front if p.chosen).weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "platt", "selection": "ece"}, "phase5.selection` has no effect"),
        ({"method": "ensemble", "mcc_guard": 0.1}, "phase5.mcc_guard` has no effect"),
        ({"preference": PreferenceConfig(nll=2.0)}, "phase5.preference` has no effect"),
    ],
)
def test_settings_that_the_method_would_ignore_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Phase5Config(**settings)


@pytest.mark.parametrize("method", ["auto", "temperature"])
def test_scores_that_happen_to_be_separable_are_not_sharpened(method):
    """Twelve tracks without a mistake say little of the thirteenth, and nothing for ever sharper scores."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12) % 3 == 0, 20).astype(np.int64)
    margin = np.where(labels, 6.0, -6.0) + rng.normal(0, 1.5, len(labels))
    rows = CalibrationSet(
        np.stack([0 * margin, margin], axis=1).astype(np.float32), labels, np.repeat(np.arange(12), 20).astype(str)
    )
    found = select_calibrator(rows, Phase5Config(method=method)).calibrator.probabilities(rows.logits)
    surest = expit(np.abs(margin).max())
    assert np.all((found >= 1 - surest - 1e-9) & (found <= surest + 1e-9))

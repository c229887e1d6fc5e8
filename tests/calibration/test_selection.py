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
def test_the_calibrator_of_every_method_is_restored_from_its_state(method):
    rows = draw(150, temperature=3.0)
    selected = select_calibrator(rows, Phase5Config(method=method, folds=2))
    p = selected.calibrator.probabilities(rows.logits)
    restored = restore_calibrator(CalibratorState(name=selected.name, state=selected.calibrator.state()))
    assert np.array_equal(restored.probabilities(rows.logits), p)
    assert np.all((p >= 0) & (p <= 1))
    assert np.all(np.diff(p[np.argsort(rows.logits[:, 1])]) >= -1e-12)
    assert selected.candidates[0].name == "none"
    assert (selected.name == "ensemble") == bool(selected.weights)


def test_a_calibrator_is_selected_by_name():
    rows = draw(temperature=3.0)
    for name in CALIBRATORS:
        selected = select_calibrator(rows, Phase5Config(method=name))
        assert selected.name == name
        assert [c.name for c in selected.candidates] == list(dict.fromkeys(["none", name]))


def test_retrained_scores_are_not_calibrated_and_are_compared_with_the_tiers():
    base = draw(temperature=3.0)
    better = CalibrationSet(base.logits / 3, base.labels, base.groups)
    selected = select_retrained(better, base, Phase5Config(method="mac_cal"))
    assert selected.name == "none"
    assert [c.name for c in selected.candidates[:2]] == ["none", "isotonic"]
    before, after = selected.candidates[0], selected.candidates[-1]
    assert (before.nll, after.name) == (select_calibrator(base, Phase5Config()).candidates[0].nll, "mac_cal")
    assert after.nll == nll(base.labels, selected.calibrator.probabilities(better.logits))
    assert after.nll < before.nll


@pytest.mark.slow
def test_calibrated_scores_are_mostly_left_uncalibrated():
    """For more than half of 20 draws of calibrated scores, no calibrator is selected."""
    names = [select_calibrator(draw(300, seed=seed), Phase5Config()).name for seed in range(20)]
    assert names.count("none") > 10


def test_overconfident_scores_are_calibrated():
    for seed in range(5):
        selected = select_calibrator(draw(400, temperature=3.0, seed=seed), Phase5Config())
        assert selected.name == "ensemble"
        assert selected.candidates[-1].nll < selected.candidates[0].nll


def test_tier_2_is_skipped_if_the_ece_of_tier_1_is_below_its_limit():
    rows = draw(temperature=3.0)
    tried = {c.name for c in select_calibrator(rows, Phase5Config(ece_limit=0.9)).candidates}
    assert tried == {"none", "isotonic", "temperature", "ensemble"}
    assert {c.name for c in select_calibrator(rows, Phase5Config()).candidates} == {*tried, "platt", "beta", "spline"}


def test_selection_by_ece_selects_the_lowest_ece():
    selected = select_calibrator(draw(temperature=3.0), Phase5Config(selection="ece"))
    accepted = [c for c in selected.candidates if c.rejected is None]
    assert selected.name == min(accepted, key=lambda c: c.ece).name


class TestGuards:
    rows = draw(temperature=3.0)
    before = evaluate_candidate(
        "none", rows.labels, expit(rows.logits[:, 1]).astype(np.float64), np.zeros(400, dtype=np.int64)
    )

    def test_a_candidate_with_a_lower_mcc_is_rejected(self):
        worse = self.before.model_copy(update={"name": "x", "mcc": self.before.mcc - 0.021})
        assert "MCC falls" in apply_guards(worse, self.before, Phase5Config()).rejected
        assert apply_guards(worse, self.before, Phase5Config(mcc_guard=0.03)).rejected is None

    def test_a_candidate_with_a_higher_debiased_ece_is_rejected(self):
        worse = self.before.model_copy(update={"name": "x", "ece_debiased": self.before.ece_debiased + 0.001})
        assert "debiased ECE rises" in apply_guards(worse, self.before, Phase5Config()).rejected

    def test_a_calibrator_that_keeps_the_order_of_scores_loses_no_mcc(self):
        for seed in range(5):
            candidates = {c.name: c for c in select_calibrator(draw(120, seed=seed), Phase5Config()).candidates}
            for name in ("temperature", "platt", "beta"):
                assert candidates[name].mcc == candidates["none"].mcc

    def test_a_rejected_ensemble_is_not_selected(self, monkeypatch):
        def constant(oof, rows, **_):
            return np.full(len(rows.labels), rows.labels.mean())

        monkeypatch.setattr(selection, "blend_out_of_fold", constant)
        selected = select_calibrator(self.rows, Phase5Config())
        assert "MCC falls" in selected.candidates[-1].rejected
        assert selected.name not in ("ensemble", "none")


def test_the_metrics_of_a_candidate_are_those_of_its_probabilities():
    rows = draw()
    p = expit(rows.logits[:, 1].astype(np.float64))
    found = evaluate_candidate("none", rows.labels, p, np.zeros(400, dtype=np.int64))
    assert (found.nll, found.ece) == (nll(rows.labels, p), ece(rows.labels, p))
    best = max(mcc_at(rows.labels, p, threshold) for threshold in np.unique(p))
    assert found.mcc == pytest.approx(best)


def mcc_at(labels, p, threshold):
    from streetvision.eval.counts import confusion_counts

    return float(mcc(confusion_counts(labels, p >= threshold)))


def test_the_weights_equal_those_of_a_grid_search():
    rows = draw(300, temperature=2.0)
    oof = out_of_fold(["none", "platt"], rows, folds=5, seed=0)
    grid = np.linspace(0, 1, 2001)
    expected = grid[np.argmin([nll(rows.labels, blend(oof, {"none": w, "platt": 1 - w})) for w in grid])]
    assert ensemble_weights(oof, rows.labels).get("none", 0.0) == pytest.approx(expected, abs=2e-3)


def test_the_weights_of_a_fold_do_not_depend_on_its_labels():
    """Flipping the labels of a fold changes the blend of other folds only."""
    rows = draw(200, temperature=2.0)
    oof = out_of_fold(["none", "platt", "isotonic"], rows, folds=4, seed=0)
    fold_of = assign_folds(rows.groups, folds=4, seed=0)
    flipped = rows.labels.copy()
    flipped[fold_of == 2] = 1 - flipped[fold_of == 2]
    before = blend_out_of_fold(oof, rows, folds=4, seed=0)
    after = blend_out_of_fold(oof, CalibrationSet(rows.logits, flipped, rows.groups), folds=4, seed=0)
    assert np.array_equal(before[fold_of == 2], after[fold_of == 2])
    assert not np.array_equal(before, after)


class TestPareto:
    rows = draw(temperature=3.0)

    def selected(self, **preference):
        return select_calibrator(
            self.rows, Phase5Config(method="multi_objective", preference=PreferenceConfig(**preference), folds=3)
        )

    def test_the_front_consists_of_the_points_that_are_not_dominated(self):
        points = self.selected().front
        values = np.array([p.objectives for p in points])
        for point in points:
            dominated = any(np.all(v <= point.objectives) and np.any(v < point.objectives) for v in values)
            assert point.on_front == (not dominated)
        assert sum(p.selected for p in points) == 1
        assert 1 < sum(p.on_front for p in points) < len(points)

    def test_the_preference_selects_the_point(self):
        only_nll = self.selected(ece=0.0, mcc_loss=0.0, fnr=0.0)
        best = next(p for p in only_nll.front if p.selected)
        assert best.nll == min(p.nll for p in only_nll.front)
        only_ece = next(p for p in self.selected(nll=0.0, mcc_loss=0.0, fnr=0.0).front if p.selected)
        assert only_ece.ece == min(p.ece for p in only_nll.front)

    def test_the_selected_point_is_the_fitted_ensemble(self):
        selected = self.selected()
        assert isinstance(selected.calibrator, Ensemble)
        assert selected.calibrator.weights == dict(next(p for p in selected.front if p.selected).weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "platt", "selection": "ece"}, "phase5.selection` has no effect"),
        ({"method": "ensemble", "mcc_guard": 0.1}, "phase5.mcc_guard` has no effect"),
        ({"preference": PreferenceConfig(nll=2.0)}, "phase5.preference` has no effect"),
    ],
)
def test_settings_without_effect_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        Phase5Config(**settings)


@pytest.mark.parametrize("method", ["auto", "temperature"])
def test_separable_scores_are_not_sharpened(method):
    """Twelve tracks without an error are little evidence for the next one, and none for more confident scores."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12) % 3 == 0, 20).astype(np.int64)
    margin = np.where(labels, 6.0, -6.0) + rng.normal(0, 1.5, len(labels))
    rows = CalibrationSet(
        np.stack([0 * margin, margin], axis=1).astype(np.float32), labels, np.repeat(np.arange(12), 20).astype(str)
    )
    found = select_calibrator(rows, Phase5Config(method=method)).calibrator.probabilities(rows.logits)
    highest = expit(np.abs(margin).max())
    assert np.all((found >= 1 - highest - 1e-9) & (found <= highest + 1e-9))

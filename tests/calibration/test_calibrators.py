import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from streetvision.calibration.calibrators import CALIBRATORS, Ensemble, make_calibrator, restore_calibrator
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError, NotFittedError
from streetvision.contracts.policies import CalibratorState

ROUNDING = 1e-12
"""Largest decrease of a monotone map by rounding."""


def draw(n=4000, *, temperature=1.0, seed=0):
    """Logits (n, 2) and labels; the true probability is the sigmoid of margin / temperature."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 3, n)
    labels = (rng.random(n) < expit(margin / temperature)).astype(np.int64)
    return np.stack([-margin / 2, margin / 2], axis=1).astype(np.float32), labels


@pytest.mark.parametrize("name", CALIBRATORS)
class TestContract:
    def test_use_before_fit_raises(self, name):
        calibrator = make_calibrator(name)
        with pytest.raises(NotFittedError, match=name):
            calibrator.probabilities(np.zeros((1, 2)))
        with pytest.raises(NotFittedError, match=name):
            calibrator.state()

    def test_a_calibrator_is_restored_from_its_state(self, name):
        logits, labels = draw(500)
        calibrator = make_calibrator(name).fit(logits, labels)
        through_json = json.loads(json.dumps(calibrator.state(), allow_nan=False))
        restored = restore_calibrator(CalibratorState(name=name, state=through_json))
        assert np.array_equal(restored.probabilities(logits), calibrator.probabilities(logits))

    @given(margin=hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(-1e4, 1e4, width=32)), data=st.data())
    def test_the_output_is_a_monotone_probability(self, name, margin, data):
        labels = data.draw(hnp.arrays(np.int64, len(margin), elements=st.integers(0, 1)))
        logits = np.stack([np.zeros_like(margin), margin], axis=1)
        p = make_calibrator(name).fit(logits, labels).probabilities(logits[np.argsort(margin)])
        assert np.all((p >= 0) & (p <= 1))
        assert np.all(np.diff(p) >= -ROUNDING)

    def test_tied_logits_get_one_probability(self, name):
        logits, labels = draw(300)
        logits = np.round(logits)
        p = make_calibrator(name).fit(logits, labels).probabilities(logits)
        _, index = np.unique(logits[:, 1] - logits[:, 0], return_inverse=True)
        assert all(np.unique(p[index == k]).size == 1 for k in range(index.max() + 1))

    def test_the_order_of_the_rows_has_no_effect(self, name):
        logits, labels = draw(300)
        shuffled = np.random.default_rng(1).permutation(300)
        a, b = make_calibrator(name).fit(logits, labels), make_calibrator(name).fit(logits[shuffled], labels[shuffled])
        assert b.probabilities(logits) == pytest.approx(a.probabilities(logits), abs=1e-5)

    def test_separable_data_and_one_class_give_finite_probabilities(self, name):
        logits, _ = draw(200)
        for labels in (logits[:, 1] > 0, np.zeros(200, dtype=int), np.ones(200, dtype=int)):
            assert np.isfinite(make_calibrator(name).fit(logits, labels).probabilities(logits)).all()

    def test_margins_that_differ_only_by_rounding_give_one_probability(self, name):
        logits = np.column_stack([np.zeros(200), np.full(200, 1.3)])
        logits[::2] += 1e3  # the margin is 1.3 except for rounding
        labels = (np.arange(200) % 3 == 0).astype(np.int64)
        near = make_calibrator(name).fit(logits, labels).probabilities([[0.0, 1.299], [0.0, 1.3], [0.0, 1.301]])
        assert np.ptp(near) < 0.01

    def test_invalid_input_is_a_data_error(self, name):
        logits, labels = draw(20)
        bad = logits.copy()
        bad[3, 0] = np.nan
        huge = logits.astype(np.float64)
        huge[3] = [0, 1e200]
        cases = [(bad, labels), (logits, labels[:-1]), (logits, labels + 1), (logits[:0], labels[:0])]
        for case in (*cases, (huge, labels), (logits.astype(str), labels), (logits, labels.astype(str))):
            with pytest.raises(DataError):
                make_calibrator(name).fit(*case)

    def test_a_state_with_an_unknown_field_is_rejected(self, name):
        fitted = make_calibrator(name).fit(*draw(200)).state()
        with pytest.raises(ArtifactError, match=name):
            restore_calibrator(CalibratorState(name=name, state=fitted | {"surprise": 1.0}))

    def test_nll_on_new_rows_falls_when_the_model_is_overconfident(self, name):
        logits, labels = draw(temperature=3.0)
        new_logits, new_labels = draw(temperature=3.0, seed=1)
        calibrator = make_calibrator(name).fit(logits, labels)
        before = nll(new_labels, expit(new_logits[:, 1] - new_logits[:, 0]))
        after = nll(new_labels, calibrator.probabilities(new_logits))
        assert after == pytest.approx(before) if name == "none" else after < before


def nll(labels, probabilities):
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0, 8.0])
def test_a_known_temperature_is_recovered_within_five_percent(temperature):
    """n = 5,000 with a wide range of margins; the mean of nine draws, so that the result depends little on the seed."""
    temperatures = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        margin = temperature * rng.normal(0, 3, 5000)
        labels = rng.random(5000) < expit(margin / temperature)
        logits = np.stack([np.zeros_like(margin), margin], axis=1)
        temperatures.append(make_calibrator("temperature").fit(logits, labels).state()["temperature"])
    assert np.mean(temperatures) == pytest.approx(temperature, rel=0.02)
    assert np.median(np.abs(np.array(temperatures) / temperature - 1)) < 0.05


def recovered_parameters(name, probability_of_margin, n=5000, seeds=9):
    """Mean state (K,) of a calibrator over draws whose labels follow `probability_of_margin`."""
    states = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        margin = rng.normal(0, 2.5, n)
        labels = rng.random(n) < probability_of_margin(margin)
        logits = np.stack([np.zeros(n), margin], axis=1)
        states.append(list(make_calibrator(name).fit(logits, labels).state().values()))
    return np.mean(states, axis=0)


def test_platt_recovers_its_own_parameters():
    assert recovered_parameters("platt", lambda m: expit(0.6 * m - 0.8)) == pytest.approx([0.6, -0.8], abs=0.04)


def test_beta_recovers_its_own_parameters():
    def truth(m):
        return expit(0.4 * np.log(expit(m)) - 1.3 * np.log(expit(-m)) + 0.3)

    assert recovered_parameters("beta", truth) == pytest.approx([0.4, 1.3, 0.3], abs=0.08)


def test_isotonic_equals_scikit_learn_away_from_0_and_1():
    logits, labels = draw(500)
    margin = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    reference = IsotonicRegression(out_of_bounds="clip").fit(margin, labels)
    new = draw(500, seed=1)[0]
    expected = np.clip(reference.predict((new[:, 1] - new[:, 0]).astype(np.float64)), 1 / 502, 501 / 502)
    inside = (expected > 0.05) & (expected < 0.95)
    assert make_calibrator("isotonic").fit(logits, labels).probabilities(new)[inside] == pytest.approx(expected[inside])


@pytest.mark.parametrize("n", [200, 20_000])
def test_the_smooth_curves_have_few_knots(n):
    for name, most in (("smooth_isotonic", 12), ("histogram", 15)):
        assert len(make_calibrator(name).fit(*draw(n)).state()["margin"]) <= most


def test_an_ensemble_is_the_weighted_mean_of_its_members_and_is_restored_from_json():
    logits, labels = draw(400, temperature=2.0)
    members = {name: make_calibrator(name).fit(logits, labels) for name in ("temperature", "isotonic")}
    ensemble = Ensemble(members, {"temperature": 0.25, "isotonic": 0.75})
    expected = 0.25 * members["temperature"].probabilities(logits) + 0.75 * members["isotonic"].probabilities(logits)
    assert ensemble.probabilities(logits) == pytest.approx(expected)
    restored = restore_calibrator(CalibratorState(name="ensemble", state=json.loads(json.dumps(ensemble.state()))))
    assert np.array_equal(restored.probabilities(logits), ensemble.probabilities(logits))


def test_an_ensemble_with_invalid_members_is_rejected():
    state = Ensemble({"none": make_calibrator("none").fit(*draw(10))}, {"none": 1.0}).state()
    for damaged in (
        {"members": [state["members"][0] | {"weight": 0.5}]},
        {"members": []},
        {"members": [member | {"weight": 0.5} for member in state["members"] * 2]},
    ):
        with pytest.raises(ArtifactError, match="ensemble"):
            restore_calibrator(CalibratorState(name="ensemble", state=damaged))


def test_the_temperature_equals_that_of_a_grid_search():
    """With Platt's targets: (N1 + 1) / (N1 + 2) for class 1, 1 / (N0 + 2) for class 0."""
    logits, labels = draw(400, temperature=2.0, seed=3)
    margin = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    grid = np.exp(np.linspace(-3, 3, 20_001))
    expected = grid[np.argmin([np.mean(np.logaddexp(0, margin / t) - target * margin / t) for t in grid])]
    found = make_calibrator("temperature").fit(logits, labels).state()["temperature"]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("state", [{}, {"temperature": -1.0}, {"temperature": "2"}, {"temperature": 1.0, "more": 1}])
def test_a_damaged_state_is_rejected(state):
    with pytest.raises(ArtifactError, match="temperature"):
        restore_calibrator(CalibratorState(name="temperature", state=state))


@pytest.mark.parametrize(
    ("margin", "probability", "message"),
    [
        ([0.0, 1.0], [0.5], "2 margins and 1 probabilities"),
        ([1.0, 0.0], [0.2, 0.5], "knots must be increasing"),
        ([0.0, 0.0], [0.2, 0.5], "knots must be increasing"),
        ([0.0, 1.0], [0.5, 0.2], "knots must be increasing"),
        ([], [], "margin"),
        ([0.0], [1.5], "probability"),
    ],
)
@pytest.mark.parametrize("name", ["isotonic", "smooth_isotonic", "histogram"])
def test_knots_of_a_decreasing_curve_are_rejected(name, margin, probability, message):
    with pytest.raises(ArtifactError, match=f"{name}.*{message}"):
        restore_calibrator(CalibratorState(name=name, state={"margin": margin, "probability": probability}))


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        make_calibrator("temprature")

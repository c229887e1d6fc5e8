import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit

from streetvision.calibration.calibrators import CALIBRATORS, make_calibrator, restore_calibrator
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError, NotFittedError
from streetvision.contracts.policies import CalibratorState


def draw(n=4000, *, temperature=1.0, seed=0):
    """Logits whose true probabilities are those of the logits over `temperature`."""
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

    def test_the_state_makes_the_same_calibrator(self, name):
        logits, labels = draw(500)
        calibrator = make_calibrator(name).fit(logits, labels)
        restored = restore_calibrator(CalibratorState(name=name, state=calibrator.state()))
        assert np.array_equal(restored.probabilities(logits), calibrator.probabilities(logits))

    @given(margin=hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(-1e4, 1e4, width=32)), data=st.data())
    def test_output_is_a_probability_that_never_falls_with_the_logit(self, name, margin, data):
        labels = data.draw(hnp.arrays(np.int64, len(margin), elements=st.integers(0, 1)))
        logits = np.stack([np.zeros_like(margin), margin], axis=1)
        found = make_calibrator(name).fit(logits, labels).probabilities(logits[np.argsort(margin)])
        assert np.all((found >= 0) & (found <= 1))
        assert np.all(np.diff(found) >= 0)

    def test_separable_data_and_one_class_give_finite_answers(self, name):
        logits, _ = draw(200)
        for labels in (logits[:, 1] > 0, np.zeros(200, dtype=int), np.ones(200, dtype=int)):
            assert np.isfinite(make_calibrator(name).fit(logits, labels).probabilities(logits)).all()

    def test_unusable_input_is_named(self, name):
        logits, labels = draw(20)
        bad = logits.copy()
        bad[3, 0] = np.nan
        for case in ((bad, labels), (logits, labels[:-1]), (logits, labels + 1), (logits[:0], labels[:0])):
            with pytest.raises(DataError):
                make_calibrator(name).fit(*case)

    def test_nll_on_new_rows_falls_when_the_model_is_overconfident(self, name):
        logits, labels = draw(temperature=3.0)
        new_logits, new_labels = draw(temperature=3.0, seed=1)
        calibrator = make_calibrator(name).fit(logits, labels)
        assert nll(new_labels, calibrator.probabilities(new_logits)) < nll(
            new_labels, expit(new_logits[:, 1] - new_logits[:, 0])
        )


def nll(labels, probabilities):
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0, 8.0])
def test_a_known_temperature_is_recovered_within_five_percent(temperature):
    logits, labels = draw(20_000, temperature=temperature)
    assert make_calibrator("temperature").fit(logits, labels).state()["temperature"] == pytest.approx(
        temperature, rel=0.05
    )


def test_the_temperature_is_where_a_slow_search_finds_the_lowest_nll():
    logits, labels = draw(400, temperature=2.0, seed=3)
    margin = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    grid = np.exp(np.linspace(-3, 3, 20_001))
    slow = grid[np.argmin([np.mean(np.logaddexp(0, -(2 * labels - 1) * margin / t)) for t in grid])]
    assert make_calibrator("temperature").fit(logits, labels).state()["temperature"] == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("state", [{}, {"temperature": -1.0}, {"temperature": "2"}, {"temperature": 1.0, "more": 1}])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ArtifactError, match="temperature"):
        restore_calibrator(CalibratorState(name="temperature", state=state))


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        make_calibrator("temprature")

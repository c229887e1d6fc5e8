import numpy as np
import pytest

from streetvision.eval.predictions import Predictions
from streetvision.eval.report.plots import pareto_plot, risk_coverage_curve
from streetvision.eval.selective import risk_coverage, selective_metrics

PNG = b"\x89PNG"


def test_a_worked_example():
    predictions = Predictions([1, 0, 1, 0, 1], [0.95, 0.1, 0.2, 0.45, 0.6])
    error = risk_coverage(predictions, threshold=0.5)
    assert error.coverage == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert error.risk == pytest.approx([0, 0, 1 / 3, 1 / 4, 1 / 5])
    misses = risk_coverage(predictions, threshold=0.5, kind="fnr")
    assert misses.risk == pytest.approx([0, 0, 1 / 2, 1 / 3, 1 / 3])


def test_equal_distances_are_predicted_together():
    curve = risk_coverage(Predictions([0, 1, 1], [0.25, 0.75, 0.5]), threshold=0.5)
    assert curve.coverage == pytest.approx([2 / 3, 1])


@pytest.mark.parametrize("kind", ["fnr", "fpr", "error"])
def test_the_end_of_the_curve_is_the_classifier_that_never_abstains(kind):
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 300), rng.random(300)
    curve = risk_coverage(Predictions(labels, p), threshold=0.4, kind=kind)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(selective_metrics(labels, p >= 0.4, np.ones(300, bool))[kind])
    assert np.all((curve.low <= curve.risk + 1e-12) & (curve.risk <= curve.high + 1e-12))


def test_metrics_among_the_predicted_rows():
    found = selective_metrics([1, 1, 0, 0], [1, 0, 1, 0], np.array([True, False, True, True]))
    assert found == {"coverage": 0.75, "fnr": 0.0, "fpr": 0.5, "error": pytest.approx(1 / 3)}


@pytest.mark.parametrize("certified", [None, (0.8, 0.04)])
def test_plots_are_the_same_bytes_for_the_same_arrays(certified):
    rng = np.random.default_rng(0)
    curve = risk_coverage(Predictions(rng.integers(0, 2, 100), rng.random(100)), threshold=0.5, kind="fnr")
    first, again = (risk_coverage_curve(curve, kind="fnr", alpha=0.05, certified=certified) for _ in range(2))
    assert first == again
    assert first.startswith(PNG)
    values = rng.random((20, 4))
    front = pareto_plot(values, [True] * 5 + [False] * 15, names=("a", "b", "c", "d"), selected=2)
    assert front.startswith(PNG)


def test_intervals_count_groups_of_the_class_at_risk():
    labels, p = np.repeat([1, 0], 6), np.linspace(0.95, 0.05, 12)
    rows = risk_coverage(Predictions(labels, p), threshold=0.6, kind="fnr")
    grouped = risk_coverage(Predictions(labels, p, np.arange(12) // 3), threshold=0.6, kind="fnr")
    assert np.array_equal(rows.risk, grouped.risk)
    assert grouped.high[-1] - grouped.low[-1] > rows.high[-1] - rows.low[-1]

import numpy as np
import pytest

from streetvision.eval import resampling
from streetvision.eval.metrics import METRICS, all_metrics
from streetvision.eval.predictions import Predictions, units_of
from streetvision.eval.resampling import Resampling, SortedScores, draw_weights, replicates


def rows(n=120, levels=15, seed=0):
    """Labels, and probabilities with ties that include 0 and 1."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, np.clip(np.round(rng.normal(0.3 + 0.4 * labels, 0.3) * levels) / levels, 0, 1)


@pytest.mark.parametrize("levels", [1, 3, 15, 10**6])
@pytest.mark.parametrize("one_threshold", [True, False])
def test_every_metric_under_weights_is_that_of_the_repeated_rows(levels, one_threshold):
    labels, p = rows(levels=levels)
    decisions = p >= 0.5 if one_threshold else np.random.default_rng(4).random(p.size) < 0.5
    ranked = SortedScores(Predictions(labels, p, decisions=decisions))
    weights = np.concatenate(list(draw_weights(units_of(None, labels.size), 7, seed=1)))
    together = ranked.metrics(ranked.statistics(weights))
    assert list(together) == list(METRICS)
    for resample, row in enumerate(weights):
        apart = all_metrics(*(np.repeat(values, row) for values in (labels, p, decisions)))
        for name, value in apart.items():
            assert together[name][resample] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_resamples_draw_as_many_rows_as_there_are():
    weights = np.concatenate(list(draw_weights(units_of(None, 50), 4000, seed=0)))
    assert weights.shape == (4000, 50)
    assert set(weights.sum(axis=1)) == {50}
    assert weights.mean(axis=0) == pytest.approx(1.0, abs=0.08)
    assert weights.var(axis=0) == pytest.approx(1 - 1 / 50, abs=0.15)


def test_groups_are_drawn_together_and_rows_without_a_group_alone():
    units = units_of(["a", "b", "a", None, None, "b"], 6)
    assert (units.count, units.grouped) == (4, True)
    weights = np.concatenate(list(draw_weights(units, 200, seed=0)))
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 1], weights[:, 5])
    assert not np.array_equal(weights[:, 3], weights[:, 4])
    assert set(weights[:, [0, 1, 3, 4]].sum(axis=1)) == {4}
    counts = units.counts(np.array([True, False, True, False, True, False]), np.array([True, True, False] * 2))
    assert (counts.tp.tolist(), counts.fn.tolist(), counts.fp.tolist()) == ([1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0])
    assert units.sums(np.arange(6.0)).tolist() == [2, 6, 3, 4]


def test_resamples_depend_on_the_seed_and_not_on_the_chunk_size(monkeypatch):
    labels, p = rows()
    units, ranked = units_of(None, labels.size), [SortedScores(Predictions(labels, p))]
    (roomy,) = replicates(ranked, units, Resampling(n_resamples=50, seed=3))
    monkeypatch.setattr(resampling, "WEIGHTS_PER_CHUNK", 1)
    (tight,) = replicates(ranked, units, Resampling(n_resamples=50, seed=3))
    (other,) = replicates(ranked, units, Resampling(n_resamples=50, seed=4))
    assert all(tight[name] == pytest.approx(roomy[name], abs=1e-12) for name in METRICS)
    assert not np.array_equal(tight["mcc"], other["mcc"])


def test_two_models_are_evaluated_on_the_same_resamples():
    labels, p = rows()
    models = [SortedScores(Predictions(labels, p)), SortedScores(Predictions.at_threshold(labels, 1 - p, 0.5 + 1e-9))]
    one, other = replicates(models, units_of(None, labels.size), Resampling(n_resamples=40))
    assert one["roc_auc"] == pytest.approx(1 - other["roc_auc"], abs=1e-12)
    assert one["accuracy"] == pytest.approx(1 - other["accuracy"], abs=1e-12)

import numpy as np
import pytest

from benchmarks import bench_statistics
from benchmarks.bench_statistics import every_metric
from streetvision.contracts.errors import StreetVisionError
from streetvision.eval.metrics import METRICS, all_metrics


def test_the_statistic_given_to_the_peer_is_ours():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (8, 50))
    p = rng.integers(0, 13, (8, 50)) / 12
    together = every_metric(labels, p)
    for row in range(8):
        alone = all_metrics(labels[row], p[row], p[row] >= 0.5)
        assert together[:, row].tolist() == pytest.approx(list(alone.values()), abs=1e-12)


def test_peers_that_disagree_are_not_timed(monkeypatch):
    labels, p = np.array([0, 1, 0, 1] * 10), np.linspace(0.1, 0.9, 40)
    bench_statistics._check_equal(labels, p)
    monkeypatch.setattr(bench_statistics, "every_metric", lambda *rows: every_metric(*rows) + 1e-9)
    with pytest.raises(StreetVisionError, match=f"{next(iter(METRICS))} differs from SciPy's by 1.0e-09"):
        bench_statistics._check_equal(labels, p)


def test_the_sweep_of_the_peer_finds_the_same_optimum():
    labels, logits = bench_statistics.scored_rows(500)
    threshold = bench_statistics._peer_sweep(labels, logits)
    ours, best, _ = bench_statistics.select_threshold_max_mcc(logits, labels)
    decisions = [1 / (1 + np.exp(-logits[:, 1].astype(float))) >= cut for cut in (threshold, ours)]
    assert np.array_equal(*decisions)
    assert best > 0.5

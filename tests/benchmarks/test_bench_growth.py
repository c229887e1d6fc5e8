import pytest

from benchmarks import bench_growth
from streetvision.contracts.progress import Silent


def test_the_four_costs_are_measured_at_every_size(monkeypatch):
    for name, value in {"IMAGES": (2, 4), "VIEWS": (1, 2), "THRESHOLDS": (50, 100), "RESAMPLES": (5, 10)}.items():
        monkeypatch.setattr(bench_growth, name, value)
    monkeypatch.setattr(bench_growth, "ROWS", 100)
    seen = []

    def one_each(functions, *, repeats):
        seen.append([function() for function in functions])
        return [1.0, 2.0]

    monkeypatch.setattr(bench_growth, "interleaved_medians", one_each)
    figures = bench_growth.bench_growth(Silent())
    assert [figure.value for figure in figures] == pytest.approx([1.0] * 4)
    assert [figure.curve.sizes for figure in figures] == [(2, 4), (1, 2), (50, 100), (5, 10)]
    assert [views.shape[:2] for views in seen[1]] == [(8, 1), (8, 2)]
    assert [curve["n"] for _, _, curve in seen[2]] == [50, 100]

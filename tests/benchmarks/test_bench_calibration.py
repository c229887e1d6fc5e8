import math

from benchmarks import bench_calibration
from streetvision.contracts.progress import Silent


def few(monkeypatch, **changes):
    """The benchmark on small data, so that a test can have it."""
    for name, value in ({"ROWS": 600, "NEW_ROWS": 500, "DRAWS": 2, "STEPS": 20} | changes).items():
        monkeypatch.setattr(bench_calibration, name, value)
    return {figure.name: figure for figure in bench_calibration.bench_calibration(Silent())}


def test_platt_and_its_peer_come_equally_near_the_truth(monkeypatch):
    found = few(monkeypatch, PAIRS=bench_calibration.PAIRS[:1])
    gap = found["platt: NLL above the truth x 1000, 600 rows"]
    assert abs(gap.value - gap.baseline_value) < 0.1 * gap.baseline_value


def test_a_peer_that_is_not_there_is_named_so(monkeypatch):
    absent = ("histogram", "HistogramBinning of netcal", "no_such_package", "HistogramBinning")
    found = few(monkeypatch, PAIRS=(absent,))
    figure = found["histogram: NLL above the truth x 1000, 600 rows"]
    assert "not installed" in figure.baseline
    assert math.isnan(figure.baseline_value)
    assert figure.value > 0

from benchmarks import bench_data
from streetvision.contracts.progress import Silent


def test_every_pass_sees_the_same_images(monkeypatch):
    monkeypatch.setattr(bench_data, "IMAGES", 8)
    monkeypatch.setattr(bench_data, "WIDTH", 384)
    monkeypatch.setattr(bench_data, "HEIGHT", 288)
    monkeypatch.setattr(bench_data, "LARGE", (640, 480))
    walked = []

    def once(ours, theirs):
        walked.append((ours(), theirs()))
        return 1.0, 2.0

    monkeypatch.setattr(bench_data, "interleaved_median", once)
    *loaders, scan, views = bench_data.bench_data(Silent())
    assert [figure.ratio for figure in (*loaders, views)] == [0.5] * 4
    assert min(scan.value, scan.baseline_value) > 0
    assert len(walked) == 4

"""Every runtime that passes the gate is timed on the same files as the peer, and a refused one is told."""

from benchmarks import bench_data, bench_inference
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.models.backbone import BackboneConfig, load_backbone

TINY = BackboneConfig(source="random", width=32, depth=1, heads=2, image_size=32)


class Heard:
    """A Progress that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def track(self, items, *, total, label, note=None):
        yield from items

    def warn(self, message):
        self.warnings.append(message)


class Blank(OnnxGraph):
    """A runtime whose answers are all the same."""

    def __call__(self, images):
        seen = super().__call__(images)
        return seen._replace(logits=seen.logits * float("nan"))


def test_what_passes_is_timed_and_what_does_not_is_told(monkeypatch):
    monkeypatch.setattr(bench_inference, "net2net_vit_s", lambda: load_backbone(TINY))
    monkeypatch.setattr(bench_inference, "PHOTOGRAPHS", 2)
    for name, size in {"WIDTH": 32, "DEPTH": 1, "HEADS": 2, "HIDDEN": 64, "SIDE": 32}.items():
        monkeypatch.setattr(bench_inference, name, size)
    monkeypatch.setattr(bench_inference, "FITTED", 8)
    monkeypatch.setattr(bench_inference, "EVALUATED", 8)
    monkeypatch.setattr(bench_data, "WIDTH", 384)
    monkeypatch.setattr(bench_data, "HEIGHT", 288)
    monkeypatch.setattr(bench_inference, "STEPS", 5)
    monkeypatch.setattr(OnnxGraph, "precisions", ("fp32",))
    monkeypatch.delitem(RUNTIMES, "openvino")
    monkeypatch.setitem(RUNTIMES, "blank", Blank)
    answers = []

    def once(ours, theirs, repeats):
        ours()
        answers.append(theirs())
        return 1.0, 4.0

    monkeypatch.setattr(bench_inference, "interleaved_median", once)
    heard = Heard()
    plain, exported = bench_inference.bench_inference(heard)
    assert plain.name == "PyTorch fp32"
    assert exported.name.startswith("onnx fp32 (MCC ")
    assert (plain.unit, plain.value, plain.baseline_value, plain.ratio) == ("images/s", 2.0, 0.5, 4.0)
    assert [len(found) for found in answers] == [2, 2]
    (warning,) = heard.warnings
    assert "blank fp32 is left out: the exported graph gives logits that are not finite" in warning

"""Every runtime that passes the gate is timed on the same files as the peer, and a rejected one gives a warning."""

from functools import partial

import numpy as np

from benchmarks import bench_data, bench_inference
from streetvision.bundle.runtimes.onnx_graph import OnnxGraph
from streetvision.bundle.runtimes.registry import RUNTIMES
from streetvision.models.backbone import BackboneConfig, load_backbone
from streetvision.synthetic.scenes import SceneConfig

TINY = BackboneConfig(source="random", width=32, depth=1, heads=2)


class Recorder:
    """A Progress that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def track(self, items, *, total, label, note=None):
        yield from items

    def warn(self, message):
        self.warnings.append(message)


class Blank(OnnxGraph):
    """A runtime with logits that are not finite."""

    def __call__(self, images):
        output = super().__call__(images)
        return output._replace(logits=output.logits * np.float32("nan"))


def test_accepted_runtimes_are_timed_and_rejected_ones_give_a_warning(monkeypatch):
    monkeypatch.setattr(bench_inference, "net2net_vit_s", lambda: load_backbone(TINY))
    monkeypatch.setattr(bench_inference, "PHOTOGRAPHS", 2)
    for name, size in {"WIDTH": 32, "DEPTH": 1, "HEADS": 2, "HIDDEN": 64, "SIDE": 32}.items():
        monkeypatch.setattr(bench_inference, name, size)
    monkeypatch.setattr(bench_inference, "SceneConfig", partial(SceneConfig, width=96, height=72))
    monkeypatch.setattr(bench_inference, "FITTED", 8)
    few = partial(bench_inference.scene_bundle, fitted=8, evaluated=8)
    monkeypatch.setattr(bench_inference, "scene_bundle", few)
    monkeypatch.setattr(bench_data, "WIDTH", 384)
    monkeypatch.setattr(bench_data, "HEIGHT", 288)
    monkeypatch.setattr(bench_inference, "STEPS", 5)
    monkeypatch.setattr(OnnxGraph, "precisions", ("fp32",))
    monkeypatch.delitem(RUNTIMES, "openvino")
    monkeypatch.setitem(RUNTIMES, "blank", Blank)
    predictions = []

    def once(ours, theirs, repeats):
        ours()
        predictions.append(theirs())
        return 1.0, 4.0

    monkeypatch.setattr(bench_inference, "interleaved_median", once)
    recorder = Recorder()
    plain, exported = bench_inference.bench_inference(recorder)
    assert plain.name == "PyTorch fp32"
    assert exported.name.startswith("onnx fp32 (MCC ")
    assert (plain.unit, plain.value, plain.baseline_value, plain.ratio) == ("images/s", 2.0, 0.5, 4.0)
    assert [len(batch) for batch in predictions] == [2, 2]
    (warning,) = recorder.warnings
    assert "blank fp32 is left out" in warning
    assert "not finite" in warning

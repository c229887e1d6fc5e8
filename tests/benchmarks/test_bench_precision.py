import pytest
import torch
from lightning.pytorch.plugins import Precision

from benchmarks import bench_precision
from benchmarks.bench_precision import CPU, Step
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.training.precision import lightning_precision

SMALL = BackboneConfig(source="timm", name="test_vit", pretrained=False)


def test_every_backbone_stands_beside_autocast_and_fp32(monkeypatch):
    monkeypatch.setattr(bench_precision, "has_fast_bf16", lambda _: True)
    monkeypatch.setattr(bench_precision, "BATCH", 2)
    figures = list(bench_precision.bench_precision((SMALL,)))
    assert [figure.baseline for figure in figures] == ["bf16 by torch's autocast", "fp32"]
    assert len({figure.value for figure in figures}) == 1
    assert all(figure.value > 0 and figure.baseline_value > 0 for figure in figures)


def test_nothing_is_timed_where_bf16_is_emulated(monkeypatch):
    monkeypatch.setattr(bench_precision, "has_fast_bf16", lambda _: False)
    assert list(bench_precision.bench_precision((SMALL,))) == []


def test_the_steps_that_are_timed_come_to_the_same_gradient():
    classifier = load_classifier(ModelConfig(backbone=SMALL)).train()
    found = []
    for precision in (Precision(), lightning_precision("bf16", CPU)):
        Step(classifier, precision)()
        found.append(torch.cat([p.grad.flatten() for p in classifier.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*found, dim=0) == pytest.approx(1, abs=0.01)

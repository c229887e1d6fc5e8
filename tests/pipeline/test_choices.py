import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from streetvision.data.config import LoaderConfig
from streetvision.pipeline import auto_settings as choices
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.console import Console
from streetvision.training.config import FrozenConfig, FullConfig, MixedPrecisionConfig
from streetvision.training.ssl.config import SimCLRConfig


@dataclass
class Told:
    """What of a context is read, and what is said to it."""

    n: int
    loader: LoaderConfig
    lines: list[str] = field(default_factory=list)

    @property
    def progress(self):
        return SimpleNamespace(auto_setting=lambda setting, reason: self.lines.append(f"{setting}: {reason}"))

    def settings(self, kind):
        assert kind is LoaderConfig
        return self.loader

    def rows(self, split):
        assert split == "train"
        return range(self.n)


def told(config, *, n=1000, workers=0, section="training"):
    context = Told(n, LoaderConfig(num_workers=workers))
    log_auto_settings(context, config, section=section)
    return context.lines


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    monkeypatch.setattr(choices, "pick_device", lambda: torch.device(request.param))
    return request.param


def test_a_frozen_backbone_has_its_reason_in_the_data_and_the_machine(device):
    frozen = FrozenConfig()
    assert told(frozen, n=72) == ["training=frozen: 72 images in TRAIN are few to adapt a backbone on"]
    (line,) = told(frozen, n=1000)
    assert ("no GPU here" in line) == (device == "cpu")
    assert "training=peft" in line


@pytest.mark.parametrize(("fast", "enabled"), [(True, "true"), (False, "false")])
def test_the_precision_follows_the_device(device, monkeypatch, fast, enabled):
    monkeypatch.setattr(choices, "has_fast_bf16", lambda _: fast)
    (line,) = told(SimCLRConfig(), section="phase4a")
    assert line.startswith(f"phase4a.mixed_precision.enabled={enabled}: this {device} ")


def test_what_was_asked_for_is_not_told_again():
    assert told(FullConfig(mixed_precision=MixedPrecisionConfig(enabled=False))) == []


def test_workers_follow_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert told(FullConfig(mixed_precision=MixedPrecisionConfig(enabled=False)), workers=None) == [
        "loader.num_workers=6: 8 cores, two of them for the model"
    ]


def test_a_choice_is_said_once_however_many_phases_ask(capsys):
    console = Console()
    for _ in range(2):
        console.auto_setting("loader.num_workers=0", "2 cores, for the model")
    assert capsys.readouterr().out.count("loader.num_workers=0") == 1

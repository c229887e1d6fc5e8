from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from streetvision.data import config as data_config
from streetvision.data.config import LoaderConfig
from streetvision.pipeline import auto_settings
from streetvision.pipeline.auto_settings import log_auto_settings
from streetvision.pipeline.console import Console
from streetvision.training.config import FrozenConfig, FullConfig, MixedPrecisionConfig
from streetvision.training.ssl.config import SimCLRConfig


@dataclass
class FakeContext:
    """The parts of a context that are read, and the lines that are printed."""

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


def auto_settings_of(config, *, n=1000, workers=0, section="training"):
    context = FakeContext(n, LoaderConfig(num_workers=workers))
    log_auto_settings(context, config, section=section)
    return context.lines


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    monkeypatch.setattr(auto_settings, "pick_device", lambda: torch.device(request.param))
    return request.param


def test_a_frozen_backbone_has_no_automatic_precision(device):
    assert auto_settings_of(FrozenConfig()) == []


@pytest.mark.parametrize(("fast", "enabled"), [(True, "true"), (False, "false")])
def test_the_precision_follows_the_device(device, monkeypatch, fast, enabled):
    monkeypatch.setattr(auto_settings, "has_fast_bf16", lambda _: fast)
    (line,) = auto_settings_of(SimCLRConfig(), section="phase4a")
    assert line.startswith(f"phase4a.mixed_precision.enabled={enabled}: this {device} ")


def test_explicit_settings_are_not_printed():
    assert auto_settings_of(FullConfig(mixed_precision=MixedPrecisionConfig(enabled=False))) == []


def test_workers_follow_the_cores(monkeypatch):
    for module in (auto_settings, data_config):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
    assert auto_settings_of(FullConfig(mixed_precision=MixedPrecisionConfig(enabled=False)), workers=None) == [
        "loader.num_workers=6: 8 cores, 2 of them for the model"
    ]


def test_an_automatic_setting_is_printed_once_for_all_phases(capsys):
    console = Console()
    for _ in range(2):
        console.auto_setting("loader.num_workers=0", "2 cores, for the model")
    assert capsys.readouterr().out.count("loader.num_workers=0") == 1

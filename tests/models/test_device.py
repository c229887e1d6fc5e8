from functools import partial

import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.models import device as device_module
from streetvision.models.config import CompilerConfig, HardwareConfig
from streetvision.models.device import hardware_settings
from streetvision.models.module import create_model_with_compile
from streetvision.training.config import FullConfig, MixedPrecisionConfig
from tests.training.test_trainer import interrupted, run


def test_without_compile_the_model_itself_is_returned():
    model = torch.nn.Linear(4, 2)
    assert create_model_with_compile(HardwareConfig(), model) is model


def test_every_setting_reaches_the_compiler(compile_calls, monkeypatch):
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    compiler = CompilerConfig(mode="max-autotune", fullgraph=True, dynamic=True, stance="eager_on_recompile")
    create_model_with_compile(HardwareConfig(compile=True, compiler=compiler), torch.nn.Linear(4, 2))
    assert compile_calls == [{"mode": "max-autotune", "fullgraph": True, "dynamic": True}]
    assert stances == ["eager_on_recompile"]


@pytest.mark.parametrize(("device", "compiled"), [("cpu", False), ("cuda", True)])
def test_auto_compiles_where_there_is_a_gpu(compile_calls, monkeypatch, device, compiled):
    monkeypatch.setattr(device_module, "pick_device", lambda: torch.device(device))
    create_model_with_compile(HardwareConfig(compile="auto"), torch.nn.Linear(4, 2))
    assert bool(compile_calls) == compiled


@pytest.mark.parametrize("stance", ["performance", "fast", ""])
def test_an_unknown_stance_is_rejected_with_the_valid_ones(stance):
    with pytest.raises(ValidationError, match=r"eager_then_compile.*fail_on_recompile"):
        CompilerConfig(stance=stance)


@pytest.mark.parametrize("stance", CompilerConfig.model_fields["stance"].annotation.__args__)
def test_torch_accepts_every_stance(stance):
    torch.compiler.set_stance(stance)
    torch.compiler.set_stance("default")


def test_compiler_settings_have_no_effect_without_compile():
    with pytest.raises(ConfigError, match="has no effect"):
        HardwareConfig(compiler=CompilerConfig(fullgraph=True))


CONFIG = FullConfig(epochs=2, batch_size=32, learning_rate=0.05, mixed_precision=MixedPrecisionConfig(enabled=False))
COMPILE = HardwareConfig(compile=True)


@pytest.mark.slow
def test_compiled_training_gives_the_same_weights_with_plain_keys(compile_calls):
    eager = run(CONFIG)[1]
    compiled = run(CONFIG, hardware=COMPILE)[1]
    assert set(compiled.best) == {"weight", "bias"}
    assert compile_calls
    for name, value in eager.last.items():
        torch.testing.assert_close(compiled.last[name], value)


@pytest.fixture
def wrong_compile(monkeypatch):
    """torch.compile whose logits have the wrong sign in evaluation."""

    def wrong(model, **_):
        return lambda inputs: torch.where(torch.tensor(model.training), model(inputs), -model(inputs))

    monkeypatch.setattr(torch, "compile", wrong)


def test_a_compiled_model_with_a_lower_metric_is_dropped(wrong_compile):
    class Recorder(Silent):
        def warn(self, message):
            warnings.append(message)

    warnings = []
    _, fitted = run(CONFIG, hardware=COMPILE, progress=Recorder())
    assert len(warnings) == 1
    assert "loses 1." in warnings[0]
    assert fitted.history[0]["val_select_mcc"] < 0 < fitted.history[1]["val_select_mcc"]


def test_a_dropped_compiled_model_stays_dropped_after_resuming(wrong_compile, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_every_n_steps": 2})
    interrupted(config, steps=10, hardware=COMPILE, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    _, fitted = run(config, hardware=COMPILE, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    assert fitted.resumed_step is not None
    assert fitted.history[0]["val_select_mcc"] < 0 < fitted.history[1]["val_select_mcc"]


def test_memory_format_and_tf32_are_applied(monkeypatch):
    model = torch.nn.Conv2d(3, 4, 2)
    with hardware_settings(model, HardwareConfig(), torch.device("cpu")):
        assert model.weight.is_contiguous()
    with hardware_settings(model, HardwareConfig(channels_last=True), torch.device("cpu")):
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
    precisions = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    for tf32 in (True, False):
        with hardware_settings(model, HardwareConfig(tf32=tf32), torch.device("cuda")):
            assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32  # as before
    assert precisions == ["high", "highest", "highest", "highest"]


def test_images_are_channels_last_if_configured():
    class Layout(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(3 * 4, 2)

        def forward(self, images):
            if self.training:
                layouts.append(images.is_contiguous(memory_format=torch.channels_last))
            return self.line(images.flatten(1))

    images, labels = torch.randn(8, 3, 2, 2), torch.tensor([0, 1] * 4)
    for channels_last in (True, False):
        layouts = []
        config, hardware = CONFIG.model_copy(update={"epochs": 1}), HardwareConfig(channels_last=channels_last)
        run(config, hardware=hardware, train=(images, labels), select=(images, labels), model=Layout())
        assert layouts == [channels_last]


def test_the_optimizer_is_fused_on_a_gpu_only(monkeypatch):
    from streetvision.training.optim import make_adamw

    plain, fused = (
        partial(make_adamw, torch.nn.Linear(2, 2), learning_rate=0.1, weight_decay=0.0, fused=f)()
        for f in (False, True)
    )
    assert not plain.defaults["fused"]
    assert fused.defaults["fused"]

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.models.config import CompileConfig, HardwareConfig
from streetvision.models.device import create_model_with_compile, memory_as_asked
from streetvision.training.config import TrainingConfig
from tests.training.test_trainer import interrupted, run


@pytest.fixture
def compiles_eagerly(monkeypatch):
    """torch.compile with all but the code generator, which takes minutes."""
    calls = []
    real = torch.compile

    def compile_(model, *, mode, fullgraph, dynamic):
        calls.append({"mode": mode, "fullgraph": fullgraph, "dynamic": dynamic})
        return real(model, backend="eager", fullgraph=fullgraph, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_)
    yield calls
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def test_without_compile_the_model_itself_is_called():
    model = torch.nn.Linear(4, 2)
    assert create_model_with_compile(model, CompileConfig()) is model


def test_every_setting_reaches_the_compiler(compiles_eagerly, monkeypatch):
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    config = CompileConfig(enabled=True, mode="max-autotune", fullgraph=True, dynamic=True, stance="eager_on_recompile")
    create_model_with_compile(torch.nn.Linear(4, 2), config)
    assert compiles_eagerly == [{"mode": "max-autotune", "fullgraph": True, "dynamic": True}]
    assert stances == ["eager_on_recompile"]


@pytest.mark.parametrize("stance", ["performance", "fast", ""])
def test_a_stance_that_torch_does_not_know_is_refused_with_those_it_does(stance):
    with pytest.raises(ValidationError, match=r"eager_then_compile.*fail_on_recompile"):
        CompileConfig(enabled=True, stance=stance)


@pytest.mark.parametrize("stance", CompileConfig.model_fields["stance"].annotation.__args__)
def test_torch_takes_every_stance_of_ours(stance):
    torch.compiler.set_stance(stance)
    torch.compiler.set_stance("default")


def test_settings_of_a_compiler_that_is_off_are_refused():
    with pytest.raises(ConfigError, match="compile is off"):
        CompileConfig(fullgraph=True)


COMPILED = TrainingConfig(
    mode="full", epochs=2, batch_size=32, learning_rate=0.05, precision="fp32", compile=CompileConfig(enabled=True)
)


def test_compiled_training_is_the_same_and_its_keys_carry_no_prefix(compiles_eagerly):
    eager = run(COMPILED.model_copy(update={"compile": CompileConfig()}))[1]
    compiled = run(COMPILED)[1]
    assert set(compiled.best) == {"weight", "bias"}
    assert compiles_eagerly
    for name, value in eager.last.items():
        torch.testing.assert_close(compiled.last[name], value)


@pytest.fixture
def compiles_wrongly(monkeypatch):
    """torch.compile whose answers are the opposite where they are judged."""

    def wrong(model, **_):
        return lambda inputs: torch.where(torch.tensor(model.training), model(inputs), -model(inputs))

    monkeypatch.setattr(torch, "compile", wrong)


def test_a_compiled_model_that_answers_worse_is_dropped(compiles_wrongly):
    class Recorder(Silent):
        def warn(self, message):
            said.append(message)

    said = []
    _, fitted = run(COMPILED, progress=Recorder())
    assert len(said) == 1
    assert "loses 1." in said[0]
    assert fitted.history[0]["val_select_mcc"] < 0 < fitted.history[1]["val_select_mcc"]


def test_what_was_dropped_stays_dropped_over_an_interruption(compiles_wrongly, tmp_path):
    config = COMPILED.model_copy(update={"checkpoint_every_n_steps": 2})
    interrupted(config, steps=10, checkpoint=tmp_path / "c.ckpt", key="k")
    _, fitted = run(config, checkpoint=tmp_path / "c.ckpt", key="k")
    assert fitted.resumed_at is not None
    assert fitted.history[0]["val_select_mcc"] < 0 < fitted.history[1]["val_select_mcc"]


def test_memory_is_laid_out_as_asked(monkeypatch):
    model = torch.nn.Conv2d(3, 4, 2)
    with memory_as_asked(model, HardwareConfig(), torch.device("cpu")):
        assert model.weight.is_contiguous()
    with memory_as_asked(model, HardwareConfig(channels_last=True), torch.device("cpu")):
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for tf32 in (True, False):
        with memory_as_asked(model, HardwareConfig(tf32=tf32), torch.device("cuda")):
            assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32  # as before
    assert asked == ["high", "highest", "highest", "highest"]


def test_images_come_channels_last_when_asked():
    class Layout(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(3 * 4, 2)

        def forward(self, images):
            if self.training:
                seen.append(images.is_contiguous(memory_format=torch.channels_last))
            return self.line(images.flatten(1))

    images, labels = torch.randn(8, 3, 2, 2), torch.tensor([0, 1] * 4)
    for asked in (True, False):
        seen = []
        config = COMPILED.model_copy(
            update={"compile": CompileConfig(), "hardware": HardwareConfig(channels_last=asked), "epochs": 1}
        )
        run(config, train=(images, labels), select=(images, labels), model=Layout())
        assert seen == [asked]


def test_the_optimizer_is_fused_on_a_gpu_only(monkeypatch):
    from streetvision.training.optim import make_adamw

    plain, fused = (
        partial(make_adamw, torch.nn.Linear(2, 2), learning_rate=0.1, weight_decay=0.0, fused=f)()
        for f in (False, True)
    )
    assert not plain.defaults["fused"]
    assert fused.defaults["fused"]

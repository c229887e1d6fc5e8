import pytest
import torch


@pytest.fixture
def compile_calls(monkeypatch):
    """Calls of torch.compile, run without the code generator, which takes minutes."""
    calls = []
    real = torch.compile

    def compile_(model, *, mode, fullgraph, dynamic):
        calls.append({"mode": mode, "fullgraph": fullgraph, "dynamic": dynamic})
        return real(model, backend="eager", fullgraph=fullgraph, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_)
    yield calls
    torch.compiler.set_stance("default")
    torch._dynamo.reset()

import pytest

from streetvision.eval.figures import STYLE


@pytest.fixture(autouse=True)
def figures_with_layout(monkeypatch):
    """Draw as in a run, with automatic layout."""
    monkeypatch.setitem(STYLE, "figure.constrained_layout.use", True)

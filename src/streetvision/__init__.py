"""streetvision: train, calibrate and ship a street-image classifier with certified risk."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streetvision.bundle.predictor import Predictor, load_bundle
    from streetvision.eval.thresholds import select_threshold_max_mcc

__version__ = "0.1.0"
__all__ = ["Predictor", "load_bundle", "select_threshold_max_mcc"]

_HOMES = {
    "Predictor": "streetvision.bundle.predictor",
    "load_bundle": "streetvision.bundle.predictor",
    "select_threshold_max_mcc": "streetvision.eval.thresholds",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'streetvision' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

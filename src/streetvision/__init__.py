"""streetvision: train, calibrate and ship a street-image classifier with certified risk."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streetvision.api.estimator import StreetvisionClassifier
    from streetvision.api.monitoring import monitor
    from streetvision.api.runs import Evaluation, Run, cross_validate, train
    from streetvision.bundle.predictor import Prediction, Predictor, load_bundle
    from streetvision.contracts.errors import StreetVisionError
    from streetvision.eval.thresholds import select_threshold_max_mcc

    __version__: str

__all__ = [
    "Evaluation",
    "Prediction",
    "Predictor",
    "Run",
    "StreetVisionError",
    "StreetvisionClassifier",
    "cross_validate",
    "load_bundle",
    "monitor",
    "select_threshold_max_mcc",
    "train",
]

_HOMES = {
    "Evaluation": "streetvision.api.runs",
    "Prediction": "streetvision.bundle.predictor",
    "Predictor": "streetvision.bundle.predictor",
    "Run": "streetvision.api.runs",
    "StreetVisionError": "streetvision.contracts.errors",
    "StreetvisionClassifier": "streetvision.api.estimator",
    "cross_validate": "streetvision.api.runs",
    "load_bundle": "streetvision.bundle.predictor",
    "monitor": "streetvision.api.monitoring",
    "select_threshold_max_mcc": "streetvision.eval.thresholds",
    "train": "streetvision.api.runs",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use; raises ConfigError if it needs an extra that is not installed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("streetvision")
    if name not in _HOMES:
        raise AttributeError(f"module 'streetvision' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from streetvision.contracts.errors import missing_package

        raise missing_package(error) or error from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

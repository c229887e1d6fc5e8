"""Calibration and risk control compared with scikit-learn, netcal and MAPIE: cost and excess NLL.

The true probabilities are known: a beta map of the margins. A peer that is not installed is named, and its figure is
nan; `uv pip install --group bench` installs the peers.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, xlog1py, xlogy

from benchmarks.figures import Figure, interleaved_median
from streetvision.calibration.calibrators import make_calibrator
from streetvision.calibration.config import Phase5Config, RiskConfig
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.risk_control import ScoredRows, abstained, certify
from streetvision.calibration.selection import select_calibrator
from streetvision.contracts.progress import Progress
from streetvision.eval.counts import BoolArray, FloatArray

ROWS, NEW_ROWS, DRAWS = 2000, 20_000, 20
STEPS = 100
"""Lower ends that MAPIE tries; it has a fixed sequence for a single parameter only."""

Labels = NDArray[np.int64]
Fit = Callable[[FloatArray, Labels], Callable[[FloatArray], FloatArray]]
"""Margins (N,) and labels (N,) -> a map from margins to probabilities."""

PAIRS = (
    ("platt", "CalibratedClassifierCV sigmoid of scikit-learn", "sklearn.calibration", "sigmoid"),
    ("isotonic", "CalibratedClassifierCV isotonic of scikit-learn", "sklearn.calibration", "isotonic"),
    ("temperature", "CalibratedClassifierCV temperature of scikit-learn", "sklearn.calibration", "temperature"),
    ("histogram", "HistogramBinning of netcal", "netcal.binning", "HistogramBinning"),
    ("beta", "BetaCalibration of netcal", "netcal.scaling", "BetaCalibration"),
    ("auto", "CalibratedClassifierCV isotonic of scikit-learn", "sklearn.calibration", "isotonic"),
)
"""Our calibrator, the peer's name, its module, and its name there."""


def bench_calibration(progress: Progress) -> list[Figure]:
    """Excess likelihood on new rows and seconds of every pair, then the share that risk control abstains on."""
    pairs = progress.track(PAIRS, total=len(PAIRS), label="calibrators")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of the peers
        return [*(figure for pair in pairs for figure in _compare(*pair)), *_risk_control()]


def _compare(name: str, peer: str, module: str, method: str) -> Iterator[Figure]:
    ours, theirs = _ours(name), _theirs(module, method)
    draws = [_draw(seed, ROWS) for seed in range(DRAWS)]
    new, truth, _ = _draw(-1, NEW_ROWS)
    gap = float(np.mean([_excess(truth, ours(margin, labels)(new)) for margin, _, labels in draws]))
    margin, _, labels = draws[0]
    if theirs is None:
        absent = f"{peer}, which is not installed"
        yield Figure(f"{name}: NLL above the truth x 1000, {ROWS:,} rows", gap, absent, np.nan, unit="")
        return
    their_gap = float(np.mean([_excess(truth, theirs(margin, labels)(new)) for margin, _, labels in draws]))
    yield Figure(f"{name}: NLL above the truth x 1000, {ROWS:,} rows", gap, peer, their_gap, unit="")
    times = interleaved_median(lambda: ours(margin, labels)(new), lambda: theirs(margin, labels)(new))
    yield Figure(f"{name}: fit, then {NEW_ROWS:,} probabilities", times[0], peer, times[1])


def _ours(name: str) -> Fit:
    def fit(margin: FloatArray, labels: Labels) -> Callable[[FloatArray], FloatArray]:
        if name == "auto":
            fitted = select_calibrator(
                CalibrationSet(_logits(margin), labels, [None] * labels.size), Phase5Config()
            ).calibrator
        else:
            fitted = make_calibrator(name).fit(_logits(margin), labels)
        return lambda new: fitted.probabilities(_logits(new))

    return fit


def _theirs(module: str, method: str) -> Fit | None:
    """The peer as one function; None where it is not installed."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None

    def scikit_learn(margin: FloatArray, labels: Labels) -> Callable[[FloatArray], FloatArray]:
        frozen = importlib.import_module("sklearn.frozen").FrozenEstimator(_margin_estimator())
        fitted = found.CalibratedClassifierCV(frozen, method=method).fit(margin[:, None], labels)
        return lambda new: np.asarray(fitted.predict_proba(new[:, None])[:, 1])

    def netcal(margin: FloatArray, labels: Labels) -> Callable[[FloatArray], FloatArray]:
        fitted = getattr(found, method)(**({"bins": 15} if method == "HistogramBinning" else {}))
        fitted.fit(expit(margin), labels)
        return lambda new: np.asarray(fitted.transform(expit(new))).ravel()

    return scikit_learn if module.startswith("sklearn") else netcal


def _margin_estimator() -> Any:
    """A fitted estimator of scikit-learn whose decision is the margin that it is given."""
    base = importlib.import_module("sklearn.base")

    class Margin(base.ClassifierMixin, base.BaseEstimator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.classes_ = np.array([0, 1])

        def fit(self, *_: object) -> "Margin":
            return self

        def decision_function(self, x: FloatArray) -> FloatArray:
            return np.asarray(x[:, 0])

        def predict(self, x: FloatArray) -> FloatArray:
            return np.asarray(x[:, 0] > 0)

    return Margin()


def _risk_control() -> list[Figure]:
    """Share abstained on at FNR <= 5 % with 90 % confidence, and the seconds that this takes."""
    name, peer = f"FNR control, {ROWS:,} rows: share abstained", "BinaryClassificationController of MAPIE"
    draws = [_draw(seed, ROWS) for seed in range(DRAWS)]
    certified = [_certified(margin, labels == 1) for margin, _, labels in draws]
    share = float(np.mean([abstained_share for abstained_share, _ in certified]))
    try:
        mapie = importlib.import_module("mapie.risk_control")
    except ImportError:
        return [Figure(name, share, f"{peer}, which is not installed", np.nan, unit="")]
    theirs = [
        _by_mapie(mapie, margin, labels, hi) for (margin, _, labels), (_, hi) in zip(draws, certified, strict=True)
    ]
    margin, _, labels = draws[0]
    times = interleaved_median(
        lambda: _certified(margin, labels == 1), lambda: _by_mapie(mapie, margin, labels, certified[0][1]), repeats=3
    )
    return [
        Figure(name, share, f"{peer}, Bonferroni-Holm, same upper end", float(np.mean(theirs)), unit=""),
        Figure("the same: one certificate", times[0], peer, times[1]),
    ]


def _certified(margin: FloatArray, truth: BoolArray) -> tuple[float, float]:
    """The share abstained on, and the upper end."""
    found = certify(ScoredRows(margin, truth, [None] * truth.size), RiskConfig(), seed=0)
    assert found.lo is not None and found.hi is not None, found.reason
    return float(abstained(margin, found.lo, found.hi).mean()), found.hi


def _by_mapie(mapie: Any, margin: FloatArray, labels: Labels, hi: float) -> float:
    """The share abstained on when MAPIE chooses the lower end; everything below the upper end when it finds none."""

    def predict(x: FloatArray, lo: float, hi: float) -> FloatArray:
        return np.where(x[:, 0] >= hi, 1.0, np.where(x[:, 0] < lo, 0.0, np.nan))

    missed = mapie.BinaryRisk(
        risk_occurrence=lambda y_true, y_pred: (y_true == 1) & (y_pred == 0),
        risk_condition=lambda y_true, y_pred: (y_true == 1) & ~np.isnan(y_pred),
        higher_is_better=False,
    )
    lows = np.linspace(margin.min(), hi, STEPS)
    controller = mapie.BinaryClassificationController(
        predict,
        missed,
        target_level=RiskConfig().alpha,
        confidence_level=1 - RiskConfig().delta,
        best_predict_param_choice=mapie.abstention_rate,
        list_predict_params=np.column_stack([lows, np.full(STEPS, hi)]),
    ).calibrate(margin[:, None], labels)
    best = controller.best_predict_param
    return float(abstained(margin, best[0] if best is not None else -np.inf, hi).mean())


def _draw(seed: int, n: int) -> tuple[FloatArray, FloatArray, Labels]:
    """Margins (N,) whose true probabilities (N,) are a beta map of them, and labels (N,)."""
    rng = np.random.default_rng(seed % 2**32)
    margin = rng.normal(0, 2.5, n)
    truth = expit(0.35 * log_expit(margin) - 1.6 * log_expit(-margin) - 0.9)
    return margin, truth, (rng.random(n) < truth).astype(np.int64)


def _excess(truth: FloatArray, found: FloatArray) -> float:
    """Expected NLL minus that of the true probabilities, x 1000."""
    q = np.clip(found, 1e-15, 1 - 1e-15)
    return 1000 * float(np.mean(xlogy(truth, truth / q) + xlog1py(1 - truth, (q - truth) / (1 - q))))


def _logits(margin: FloatArray) -> FloatArray:
    return np.stack([np.zeros_like(margin), margin], axis=1)

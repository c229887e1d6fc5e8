"""Statistics against scikit-learn and SciPy, on the same data and, for the bootstrap, on the same resamples."""

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy
from scipy.stats import bootstrap

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.eval.bootstrap import bootstrap_intervals
from streetvision.eval.counts import FloatArray
from streetvision.eval.metrics import ECE_BINS, METRICS, all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling, SortedScores, draw_weights, replicates
from streetvision.eval.thresholds import select_threshold_max_mcc

ROWS, RESAMPLES, THRESHOLD = 10_000, 1000, 0.5
LOOPED = 20
"""Resamples that the slow loop is timed on; its time is scaled to RESAMPLES."""
BATCH = 1
"""Resamples that SciPy holds at a time: the quickest of 1, 5, 10, 20 and 50 at 10,000 rows."""
SAME = 1e-12

IntArray = NDArray[np.int64]


def bench_statistics(_: Progress) -> list[Figure]:
    """Threshold sweeps by size, and intervals of every metric at 10,000 rows."""
    return [*_sweeps(), *_bootstraps()]


def _sweeps() -> list[Figure]:
    figures = []
    for rows, repeats in ((200_000, 7), (1_000_000, 3), (10_000_000, 1)):
        labels, logits = scored_rows(rows)
        sweep = partial(select_threshold_max_mcc, logits, labels)
        ours, theirs = interleaved_median(sweep, partial(_peer_sweep, labels, logits), repeats=repeats)
        name = f"threshold sweep, {rows:,} rows: exact and 5,000 on a grid"
        figures.append(Figure(name, ours, "roc_curve of scikit-learn, MCC in numpy", theirs))
        peak = _peak_megabytes(sweep)
        held = (labels.nbytes + logits.nbytes) / 1e6
        figures.append(Figure("memory above the inputs", peak, "the inputs", held, unit="MB"))
    return figures


def _bootstraps() -> list[Figure]:
    labels, logits = scored_rows(ROWS)
    p = expit(logits[:, 1].astype(np.float64))
    _check_equal(labels, p)

    def ours() -> object:
        return bootstrap_intervals(Predictions.at_threshold(labels, p, THRESHOLD), Resampling(n_resamples=RESAMPLES))

    def scipys() -> object:
        options: dict[str, Any] = {"paired": True, "vectorized": True, "method": "percentile", "batch": BATCH}
        rng = np.random.default_rng(0)
        return bootstrap((labels, p), every_metric, n_resamples=RESAMPLES, rng=rng, **options)

    def loop() -> object:
        rng = np.random.default_rng(0)
        return [_by_scikit_learn(*_drawn(labels, p, rng.integers(0, ROWS, ROWS))) for _ in range(LOOPED)]

    name = f"{RESAMPLES:,} resamples x {len(METRICS)} metrics, {ROWS:,} rows"
    quick, vectorized = interleaved_median(ours, scipys, repeats=5)
    again, looped = interleaved_median(ours, loop, repeats=3)
    return [
        Figure(name, quick, "scipy.stats.bootstrap, vectorized, percentile", vectorized),
        Figure(name, again, f"a loop over scikit-learn ({LOOPED} resamples, scaled)", looped * RESAMPLES / LOOPED),
    ]


def every_metric(labels: IntArray, p: FloatArray, axis: int = -1) -> FloatArray:
    """The metrics of the table (12, ...) of labels and probabilities (..., N), as one writes them for SciPy."""
    assert axis == -1
    called, n = p >= THRESHOLD, p.shape[-1]
    positives = labels.sum(-1, dtype=np.float64)
    negatives = n - positives
    tp, fp = (labels * called).sum(-1, dtype=np.float64), ((1 - labels) * called).sum(-1, dtype=np.float64)
    fn, tn = positives - tp, negatives - fp
    roots = np.sqrt((tp + fp) * positives * (tn + fn) * negatives)
    rates = [(tp * tn - fp * fn) / roots, (tp + tn) / n, tp / (tp + fp), tp / positives]
    rates += [2 * tp / (2 * tp + fp + fn), fn / positives, fp / negatives]
    gaps = labels - p
    clipped = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    nll = -(xlogy(labels, clipped) + xlogy(1 - labels, 1 - clipped)).mean(-1)
    return np.array([*rates, *_areas(labels, p), _ece(p, gaps), (gaps**2).mean(-1), nll])


def _areas(labels: IntArray, p: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ROC-AUC and average precision (...,), ties taken together: one sort of keys that hold the label in a bit."""
    keys = p.view(np.int64) << 1 | labels
    keys.sort(axis=-1)
    hits, scores = (keys & 1)[..., ::-1], (keys >> 1)[..., ::-1]
    tp, rank = np.cumsum(hits, axis=-1), np.arange(1, p.shape[-1] + 1)
    ends = np.ones(scores.shape, dtype=bool)
    ends[..., :-1] = scores[..., 1:] != scores[..., :-1]
    # Positions inside a tie repeat the previous end, and so add nothing.
    tp_ends = np.maximum.accumulate(np.where(ends, tp, 0), axis=-1)
    fp_ends = np.maximum.accumulate(np.where(ends, rank - tp, 0), axis=-1)
    tp_steps, fp_steps = np.diff(tp_ends, prepend=0), np.diff(fp_ends, prepend=0)
    positives, negatives = tp_ends[..., -1], fp_ends[..., -1]
    area = (fp_steps * (tp_ends - tp_steps / 2)).sum(-1) / (positives * negatives)
    precision = tp_ends / np.maximum(tp_ends + fp_ends, 1)
    return area, (tp_steps * precision).sum(-1) / positives


def _ece(p: FloatArray, gaps: FloatArray) -> Any:
    rows = p.reshape(-1, p.shape[-1])
    bins = np.minimum((rows * ECE_BINS).astype(np.intp), ECE_BINS - 1) + ECE_BINS * np.arange(len(rows))[:, None]
    sums = np.bincount(bins.ravel(), weights=gaps.reshape(rows.shape).ravel(), minlength=ECE_BINS * len(rows))
    return np.abs(sums.reshape(*p.shape[:-1], ECE_BINS)).sum(-1) / p.shape[-1]


def _by_scikit_learn(labels: IntArray, p: FloatArray) -> list[float]:
    """The same metrics by scikit-learn's functions; ECE and the two error rates, which it lacks, in numpy."""
    sk = _scikit_learn()
    called = p >= THRESHOLD
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels, called)
    by_decision = (sk.matthews_corrcoef, sk.accuracy_score, sk.precision_score, sk.recall_score, sk.f1_score)
    by_score = (sk.roc_auc_score, sk.average_precision_score)
    return [
        *(float(function(labels, called)) for function in by_decision),
        float(fn / (fn + tp)),
        float(fp / (fp + tn)),
        *(float(function(labels, p)) for function in by_score),
        float(_ece(p, labels - p)),
        float(sk.brier_score_loss(labels, p)),
        float(sk.log_loss(labels, p)),
    ]


def _check_equal(labels: IntArray, p: FloatArray) -> None:
    """Raise unless all three agree: timings of different results cannot be compared."""
    predictions = Predictions.at_threshold(labels, p, THRESHOLD)
    units = predictions.units
    (ours,) = replicates([SortedScores(predictions)], units, Resampling(n_resamples=LOOPED))
    weights = np.concatenate(list(draw_weights(units, LOOPED, seed=0)))
    drawn = [_drawn(labels, p, np.repeat(np.arange(labels.size), row)) for row in weights]
    together = every_metric(np.stack([one for one, _ in drawn]), np.stack([one for _, one in drawn]))
    apart = np.array([_by_scikit_learn(*one) for one in drawn]).T
    for position, name in enumerate(METRICS):
        for peer, theirs in (("SciPy's", together), ("scikit-learn's", apart)):
            worst = float(np.abs(ours[name] - theirs[position]).max())
            if worst > SAME:
                raise StreetVisionError(f"{name} differs from {peer} by {worst:.1e} on the same resamples", None)
    assert list(all_metrics(labels, p, p >= THRESHOLD)) == list(METRICS)


def _drawn(labels: IntArray, p: FloatArray, rows: IntArray) -> tuple[IntArray, FloatArray]:
    return labels[rows], p[rows]


def _peer_sweep(labels: IntArray, logits: NDArray[np.float32]) -> float:
    """The exact optimum as one writes it with scikit-learn."""
    p = expit(logits[:, 1].astype(np.float64) - logits[:, 0])
    fpr, tpr, thresholds = _scikit_learn().roc_curve(labels, p, drop_intermediate=False)
    positives = float(labels.sum())
    negatives = labels.size - positives
    tp, fp = tpr * positives, fpr * negatives
    margins = (tp + fp) * positives * (labels.size - tp - fp) * negatives
    mcc = (tp * (negatives - fp) - fp * (positives - tp)) / np.sqrt(np.where(margins > 0, margins, 1))
    return float(thresholds[np.argmax(mcc)])


def _peak_megabytes(function: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def scored_rows(rows: int) -> tuple[IntArray, NDArray[np.float32]]:
    """Labels (N,) and logits (N, 2) of a fair model: 30 % positives, ROC-AUC about 0.92."""
    rng = np.random.default_rng(0)
    labels = (rng.random(rows) < 0.3).astype(np.int64)
    logits = np.zeros((rows, 2), dtype=np.float32)
    logits[:, 1] = rng.normal(size=rows) + 2 * labels - 1
    return labels, logits


def _scikit_learn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise StreetVisionError(
            "scikit-learn, the peer of this benchmark, is not installed", "install it: pip install scikit-learn"
        ) from error
    return sklearn.metrics

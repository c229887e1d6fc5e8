"""Every metric on bootstrap resamples of the rows, or of whole groups of rows, in bounded memory.

A resample is a weight for each row: how often the row was drawn. Rows are sorted by score once. After that a resample
costs one random draw, two cumulative sums and a few passes over the rows, and no further sort.

Shapes: N rows, U units (groups, or the rows themselves), C resamples in memory at a time, E edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, FloatArray, ThresholdCounts
from streetvision.eval.metrics import METRICS, Basis
from streetvision.eval.predictions import IntArray, Predictions, ResamplingUnits

WEIGHTS_PER_CHUNK = 1 << 16
"""Enough weights to amortize the cost of a numpy call, few enough to stay in the cache."""


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap.

    Raises:
        DataError: fewer than 2 resamples, or a level outside (0, 1).
    """

    n_resamples: int = 1000
    level: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 2:
            raise DataError(f"n_resamples must be >= 2; got {self.n_resamples}", "1000 is usual")
        if not 0 < self.level < 1:
            raise DataError(f"level must be between 0 and 1; got {self.level}", "use 0.95 for 95 % intervals")


DEFAULT_RESAMPLING = Resampling()


class CountsAtEdges:
    """The counts (C, E) when the sorted rows from each edge on are predicted positive, for weights of the rows."""

    def __init__(self, sorted_labels: BoolArray, edges: IntArray) -> None:
        self._edges, self._positives = edges, np.flatnonzero(sorted_labels)
        self._positive_edges = np.searchsorted(self._positives, edges)
        self._row_sums, self._positive_sums = _PrefixSums(), _PrefixSums()

    def __call__(self, weights: IntArray) -> Counts:
        """The counts (C, E) under integer weights (C, N) of the rows in sorted order."""
        rows, positives = self._row_sums(weights), self._positive_sums(weights.take(self._positives, axis=1))
        fn = positives.take(self._positive_edges, axis=1)
        tn = (rows.take(self._edges, axis=1) - fn).astype(np.float64)
        fn = fn.astype(np.float64)
        tp = positives[:, -1:] - fn
        return Counts(tp=tp, tn=tn, fp=(rows[:, -1:] - positives[:, -1:]) - tn, fn=fn)


class SortedScores:
    """Predictions whose rows are sorted once, so that every metric can be computed for any weights of the rows."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        order = np.argsort(predictions.probabilities, kind="stable")
        scores, labels = predictions.probabilities[order], predictions.labels[order]
        self._order = None if np.array_equal(order, np.arange(order.size)) else order
        edges = _relevant_edges(scores, labels)
        self._scores = scores[edges[:-1]]
        self._counts = CountsAtEdges(labels, edges)
        row_terms = {name: METRICS[name].function(labels, scores) for name in _names_with(Basis.TERMS)}
        self._unbinned = {name: terms.values for name, terms in row_terms.items() if terms.bins is None}
        self._binned = {
            name: (terms.values, np.flatnonzero(np.diff(terms.bins, prepend=-1)))
            for name, terms in row_terms.items()
            if terms.bins is not None
        }
        decided = predictions.decisions[order]
        # One matrix product per chunk then gives TP, the predicted positives and the sums of all unbinned terms.
        self._columns = np.asfortranarray(np.column_stack([labels & decided, decided, *self._unbinned.values()]) * 1.0)

    def statistics(self, weights: IntArray) -> FloatArray:
        """The sufficient statistics of every metric, under integer weights (C, N) of the rows.

        Columns: tp, tn, fp and fn of the decisions, the metrics over all thresholds, the sums of the terms.
        """
        weights = weights if self._order is None else weights.take(self._order, axis=1)
        at_edges = self._counts(weights)
        curve = ThresholdCounts(self._scores, at_edges.tp, at_edges.fp)
        areas = [METRICS[name].function(curve) for name in _names_with(Basis.THRESHOLDS)]
        row_weights = weights.astype(np.float64)
        tp, decided, *sums = np.abs(row_weights @ self._columns).T
        binned = [
            np.abs(np.add.reduceat(row_weights * values, starts, axis=1)).sum(axis=1)
            for values, starts in self._binned.values()
        ]
        fp = decided - tp
        return np.column_stack([tp, curve.negatives - fp, fp, curve.positives - tp, *areas, *sums, *binned])

    def metrics(self, statistics: FloatArray) -> dict[str, FloatArray]:
        """Every metric of the table (C,) from the `statistics` of C resamples."""
        counts, rest = Counts(*statistics.T[:4]), iter(statistics.T[4:])
        values = {name: METRICS[name].function(counts) for name in _names_with(Basis.COUNTS)}
        values |= {name: next(rest) for name in _names_with(Basis.THRESHOLDS)}
        values |= {name: next(rest) / counts.total for name in (*self._unbinned, *self._binned)}
        return {name: values[name] for name in METRICS}


def draw_weights(units: ResamplingUnits, n_resamples: int, seed: int) -> Iterator[IntArray]:
    """Weights (C, N) of resamples: as many units as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    chunk = max(1, WEIGHTS_PER_CHUNK // max(units.of_row.size, units.count))
    for start in range(0, n_resamples, chunk):
        shape = (min(chunk, n_resamples - start), units.count)
        drawn = rng.integers(0, units.count, size=shape)
        # Offset each resample, so that one bincount counts the draws of all of them.
        drawn += units.count * np.arange(shape[0])[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape)
        yield weights.take(units.of_row, axis=1) if units.grouped else weights


def replicates(
    models: Sequence[SortedScores], units: ResamplingUnits, resampling: Resampling, *, rows: slice = slice(None)
) -> list[dict[str, FloatArray]]:
    """Every metric of the table (n_resamples,) of each model, all on the same resamples of the same rows.

    Args:
        models: predictions of the same rows.
        units: of these rows, or of a longer array that contains them.
        resampling: the settings.
        rows: the part of the units' rows that the models predict. A metric may be nan if a resample has none of them.
    """
    chunks: list[list[FloatArray]] = [[] for _ in models]
    for weights in draw_weights(units, resampling.n_resamples, resampling.seed):
        for model, statistics in zip(models, chunks, strict=True):
            statistics.append(model.statistics(weights[:, rows]))
    with np.errstate(invalid="ignore"):
        return [model.metrics(np.concatenate(statistics)) for model, statistics in zip(models, chunks, strict=True)]


def _relevant_edges(scores: FloatArray, labels: BoolArray) -> IntArray:
    """The positions in the sorted rows that the areas depend on: 0, N, and the edges of ties that hold a positive.

    Between two ties without positives, the ROC curve keeps its direction and recall does not rise.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(scores)) + 1, [scores.size]])
    has_positive = np.logical_or.reduceat(labels, edges[:-1])
    relevant = np.concatenate([[True], has_positive[1:] | has_positive[:-1], [True]])
    return np.asarray(edges[relevant], dtype=np.int64)


class _PrefixSums:
    """Sums of weights before each position, in a reused buffer: allocating one costs more than the sums."""

    def __init__(self) -> None:
        self._buffer = np.zeros((0, 0), dtype=np.int64)

    def __call__(self, weights: IntArray) -> IntArray:
        """Weights (C, N) -> sums (C, N + 1), valid until the next call."""
        resamples, rows = weights.shape
        if self._buffer.shape[0] < resamples or self._buffer.shape[1] != rows + 1:
            self._buffer = np.zeros((resamples, rows + 1), dtype=np.int64)
        sums = self._buffer[:resamples]
        np.cumsum(weights, axis=1, out=sums[:, 1:])
        return sums


def _names_with(basis: Basis) -> list[str]:
    """The metrics of one basis, in the order of the table."""
    return [name for name, metric in METRICS.items() if metric.basis is basis]

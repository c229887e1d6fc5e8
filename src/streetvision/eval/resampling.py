"""Every metric on bootstrap resamples of the rows, or of whole groups of rows, in bounded memory.

A resample is a weight for each row: how often it was drawn. Rows are sorted by score once; after that a resample costs
one random draw, two cumulative sums and a few passes, never another sort.

Legend: N rows, U units (groups, or the rows themselves), C resamples held at a time, K cuts, T terms.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import BoolArray, Counts, Cuts, FloatArray, checked
from streetvision.eval.metrics import METRICS, Basis
from streetvision.eval.thresholds import decide

WEIGHTS_AT_ONCE = 1 << 16
"""Weights held at a time: enough to hide the cost of calling numpy, few enough to stay in the cache."""

IntArray = NDArray[np.int64]


class Predictions(NamedTuple):
    """A model or a policy on the rows of a test set: its probabilities and what it decides."""

    probabilities: ArrayLike
    """(N,) of class 1."""
    decisions: ArrayLike
    """(N,) 0 or 1."""

    @classmethod
    def cut(cls, probabilities: ArrayLike, threshold: float) -> "Predictions":
        """What calls a row class 1 where its probability is at least `threshold`."""
        return cls(probabilities, decide(probabilities, threshold))

    def checked(self, labels: ArrayLike) -> tuple[BoolArray, FloatArray, BoolArray]:
        """Labels, probabilities and decisions (N,), known to be usable and of one length; DataError where not."""
        truth, p = checked(labels, self.probabilities)
        decided = np.asarray(self.decisions) == 1
        if decided.shape != truth.shape:
            raise DataError(
                f"decisions must be one a label; expected shape {truth.shape}, got {decided.shape}",
                "give 0 or 1 for the same rows as the labels",
            )
        return truth, p, decided


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn. Raises DataError for a number of resamples or a level that make no sense."""

    groups: Sequence[Hashable] | None = None
    """(N,) rows of one group are drawn together; None for a row that stands alone, or for all of them."""
    n_resamples: int = 1000
    level: float = 0.95
    """Share of data sets whose truth the interval should hold."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 2:
            raise DataError(f"n_resamples must be at least 2; got {self.n_resamples}", "1000 is usual")
        if not 0 < self.level < 1:
            raise DataError(f"level must lie between 0 and 1; got {self.level}", "0.95 stands for 95 % intervals")

    def units(self, n_rows: int) -> "ResamplingUnits":
        """What is drawn from so many rows; raises DataError unless there is one group a row."""
        return units_of(self.groups, n_rows)


@dataclass(frozen=True)
class ResamplingUnits:
    """Which rows are drawn together."""

    of_row: IntArray
    """(N,) the unit of each row."""
    count: int
    """U."""

    @property
    def grouped(self) -> bool:
        """False where every row is a unit of its own."""
        return self.count < self.of_row.size

    def reordered(self, order: IntArray) -> "ResamplingUnits":
        """The units of rows[order], numbered as they come; order (N,) is a permutation."""
        if not self.grouped:
            return self
        _, first, of_row = np.unique(self.of_row[order], return_index=True, return_inverse=True)
        return ResamplingUnits(np.argsort(np.argsort(first))[of_row], self.count)

    def counts(self, truth: BoolArray, decided: BoolArray) -> Counts:
        """The four outcomes (U,) within each unit."""
        cells = (truth & decided, ~truth & ~decided, ~truth & decided, truth & ~decided)
        return Counts(*(self.sums(cell) for cell in cells))

    def sums(self, values: FloatArray | BoolArray) -> FloatArray:
        """Values (N,) added up within each unit: (U,)."""
        return np.bincount(self.of_row, weights=values, minlength=self.count).astype(np.float64)


def units_of(groups: Sequence[Hashable] | None, n_rows: int) -> ResamplingUnits:
    """The units of rows with these `groups`; a row whose group is None stands alone.

    Raises:
        DataError: not one group a row.
    """
    if groups is None:
        return ResamplingUnits(np.arange(n_rows), n_rows)
    if len(groups) != n_rows:
        raise DataError(
            f"expected one group a row; got {len(groups)} groups for {n_rows} rows",
            "give None for a row that belongs to no group",
        )
    number: dict[Any, int] = {}
    keys = (object() if group is None else group for group in groups)
    of_row = np.array([number.setdefault(key, len(number)) for key in keys])
    return ResamplingUnits(of_row, len(number))


class CountsAtEdges:
    """Counts when the ranked rows from an edge on are called positive, for several edges and any weights of the rows.

    Legend: E edges.
    """

    def __init__(self, ranked_truth: BoolArray, edges: IntArray) -> None:
        self._edges, self._positives = edges, np.flatnonzero(ranked_truth)
        self._positive_edges = np.searchsorted(self._positives, edges)
        self._sum_rows, self._sum_positives = _SumsBefore(), _SumsBefore()

    def __call__(self, ranked: IntArray) -> Counts:
        """The counts (C, E) under whole-number weights (C, N) of the rows in rank order."""
        rows, positives = self._sum_rows(ranked), self._sum_positives(ranked.take(self._positives, axis=1))
        fn = positives.take(self._positive_edges, axis=1)
        tn = (rows.take(self._edges, axis=1) - fn).astype(np.float64)
        fn = fn.astype(np.float64)
        tp = positives[:, -1:] - fn
        return Counts(tp=tp, tn=tn, fp=(rows[:, -1:] - positives[:, -1:]) - tn, fn=fn)


class SortedScores:
    """A `Predictions` whose rows are sorted once, so that every metric can be had for any weights of the rows."""

    def __init__(self, labels: ArrayLike, judged: Predictions) -> None:
        self.truth, self.probabilities, self.decisions = judged.checked(labels)
        order = np.argsort(self.probabilities, kind="stable")
        scores, truth = self.probabilities[order], self.truth[order]
        self._order = None if np.array_equal(order, np.arange(order.size)) else order
        telling = _telling_edges(scores, truth)
        self._scores = scores[telling[:-1]]
        self._count = CountsAtEdges(truth, telling)
        of_rows = {name: METRICS[name].function(truth, scores) for name in _named(Basis.TERMS)}
        self._unbinned = {name: terms.values for name, terms in of_rows.items() if terms.bins is None}
        self._binned = {
            name: (terms.values, np.flatnonzero(np.diff(terms.bins, prepend=-1)))
            for name, terms in of_rows.items()
            if terms.bins is not None
        }
        called = self.decisions[order]
        self._columns = np.asfortranarray(np.column_stack([truth & called, called, *self._unbinned.values()]) * 1.0)

    def statistics(self, weights: IntArray) -> FloatArray:
        """What every metric is made of, under whole-number weights (C, N) of the rows.

        Columns: tp, tn, fp and fn of the decisions, the metrics over all cuts, the sums of the terms.
        """
        ranked = weights if self._order is None else weights.take(self._order, axis=1)
        at_edges = self._count(ranked)
        cuts = Cuts(self._scores, at_edges.tp, at_edges.fp)
        areas = [METRICS[name].function(cuts) for name in _named(Basis.CUTS)]
        weighing = ranked.astype(np.float64)
        tp, called, *sums = np.abs(weighing @ self._columns).T
        binned = [
            np.abs(np.add.reduceat(weighing * values, starts, axis=1)).sum(axis=1)
            for values, starts in self._binned.values()
        ]
        fp = called - tp
        return np.column_stack([tp, cuts.negatives - fp, fp, cuts.positives - tp, *areas, *sums, *binned])

    def metrics(self, statistics: FloatArray) -> dict[str, FloatArray]:
        """Every metric of the table (C,) from the `statistics` of C resamples."""
        counts, rest = Counts(*statistics.T[:4]), iter(statistics.T[4:])
        values = {name: METRICS[name].function(counts) for name in _named(Basis.COUNTS)}
        values |= {name: next(rest) for name in _named(Basis.CUTS)}
        values |= {name: next(rest) / counts.total for name in (*self._unbinned, *self._binned)}
        return {name: values[name] for name in METRICS}


def draw_weights(units: ResamplingUnits, n_resamples: int, seed: int) -> Iterator[IntArray]:
    """Weights (C, N) of resamples of the units, drawn with replacement; as many units as there are."""
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(units.of_row.size, units.count))
    for start in range(0, n_resamples, at_once):
        shape = (min(at_once, n_resamples - start), units.count)
        picks = rng.integers(0, units.count, size=shape)
        picks += units.count * np.arange(shape[0])[:, None]
        weights = np.bincount(picks.ravel(), minlength=picks.size).reshape(shape)
        yield weights.take(units.of_row, axis=1) if units.grouped else weights


def replicates(
    ranked: Sequence[SortedScores], units: ResamplingUnits, how: Resampling, *, rows: slice = slice(None)
) -> list[dict[str, FloatArray]]:
    """Every metric of the table (n_resamples,) for each of `ranked`, all on the same resamples of the same rows.

    `rows` are those of the units' that `ranked` holds; a metric may be nan where a resample has none of them.
    """
    parts: list[list[FloatArray]] = [[] for _ in ranked]
    for weights in draw_weights(units, how.n_resamples, how.seed):
        for one, collected in zip(ranked, parts, strict=True):
            collected.append(one.statistics(weights[:, rows]))
    with np.errstate(invalid="ignore"):
        return [one.metrics(np.concatenate(collected)) for one, collected in zip(ranked, parts, strict=True)]


def _telling_edges(ranked: FloatArray, ranked_truth: BoolArray) -> IntArray:
    """Positions in the ranked rows where a cut tells something: 0, N, and the edges of ties that hold a positive.

    Between two ties without positives neither the ROC curve turns nor the recall rises, so no area changes.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1, [ranked.size]])
    holds = np.logical_or.reduceat(ranked_truth, edges[:-1])
    kept = np.concatenate([[True], holds[1:] | holds[:-1], [True]])
    telling: IntArray = edges[kept]
    return telling


class _SumsBefore:
    """Sums of weights before each position, in memory that is kept: fresh memory would cost more than the sums."""

    def __init__(self) -> None:
        self._kept = np.zeros((0, 0), dtype=np.int64)

    def __call__(self, weights: IntArray) -> IntArray:
        """Weights (C, N) -> sums (C, N + 1), valid until the next call."""
        resamples, rows = weights.shape
        if self._kept.shape[0] < resamples or self._kept.shape[1] != rows + 1:
            self._kept = np.zeros((resamples, rows + 1), dtype=np.int64)
        sums = self._kept[:resamples]
        np.cumsum(weights, axis=1, out=sums[:, 1:])
        return sums


def _named(basis: Basis) -> list[str]:
    """The metrics of one basis, in the order of the table."""
    return [name for name, metric in METRICS.items() if metric.basis is basis]

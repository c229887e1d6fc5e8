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


class Judged(NamedTuple):
    """A model or a policy on the rows of a test set: its probabilities and where it cuts them."""

    probabilities: ArrayLike
    """(N,) of class 1."""
    threshold: float


@dataclass(frozen=True)
class Units:
    """Which rows are drawn together."""

    of_row: IntArray
    """(N,) the unit of each row."""
    count: int
    """U."""

    @property
    def grouped(self) -> bool:
        """False where every row is a unit of its own."""
        return self.count < self.of_row.size

    def holding(self, rows: BoolArray) -> int:
        """How many units hold at least one of `rows` (N,), a mask."""
        return int(np.unique(self.of_row[rows]).size)

    def sums(self, values: FloatArray | BoolArray) -> FloatArray:
        """Values (N,) added up within each unit: (U,)."""
        return np.bincount(self.of_row, weights=values, minlength=self.count).astype(np.float64)


def units_of(groups: Sequence[Hashable] | None, n_rows: int) -> Units:
    """The units of rows with these `groups`; a row whose group is None stands alone.

    Raises:
        DataError: not one group a row.
    """
    if groups is None:
        return Units(np.arange(n_rows), n_rows)
    if len(groups) != n_rows:
        raise DataError(
            f"expected one group a row; got {len(groups)} groups for {n_rows} rows",
            "give None for a row that belongs to no group",
        )
    number: dict[Any, int] = {}
    keys = (object() if group is None else group for group in groups)
    of_row = np.array([number.setdefault(key, len(number)) for key in keys])
    return Units(of_row, len(number))


class Ranked:
    """A `Judged` whose rows are sorted once, so that every metric can be had for any weights of the rows."""

    def __init__(self, labels: ArrayLike, judged: Judged) -> None:
        self.truth, self.probabilities = checked(labels, judged.probabilities)
        self.decisions = decide(self.probabilities, judged.threshold)
        self.terms = {name: METRICS[name].function(self.truth, self.probabilities) for name in _named(Basis.TERMS)}
        self._all_terms = np.asfortranarray(np.hstack(list(self.terms.values())))
        self._order = np.argsort(self.probabilities, kind="stable")
        scores = self.probabilities[self._order]
        self._ranked_truth = self.truth[self._order].astype(np.int64)
        telling = _telling_edges(scores, self._ranked_truth)
        self._scores = scores[telling[:-1]]
        self._edges = np.append(telling, np.searchsorted(scores, judged.threshold, side="left"))

    def statistics(self, weights: IntArray) -> FloatArray:
        """What every metric is made of, under whole-number weights (C, N).

        Columns: tp, tn, fp and fn at the threshold, the metrics over all cuts, the weighted sums of all terms.
        """
        counts, cuts = self._count(weights)
        areas = [METRICS[name].function(cuts) for name in _named(Basis.CUTS)]
        sums = weights.astype(np.float64) @ self._all_terms
        return np.column_stack([counts.tp, counts.tn, counts.fp, counts.fn, *areas, sums])

    def metrics(self, statistics: FloatArray) -> dict[str, FloatArray]:
        """Every metric of the table (C,) from the `statistics` of C resamples."""
        areas = _named(Basis.CUTS)
        widths = [4, len(areas), *(columns.shape[1] for columns in self.terms.values())]
        cells, of_cuts, *sums = np.split(statistics, np.cumsum(widths)[:-1], axis=1)
        counts = Counts(*cells.T)
        values = {name: METRICS[name].function(counts) for name in _named(Basis.COUNTS)}
        values |= zip(areas, of_cuts.T, strict=True)
        for name, columns in zip(self.terms, sums, strict=True):
            values[name] = np.abs(columns / counts.total[:, None]).sum(axis=1)
        return {name: values[name] for name in METRICS}

    def _count(self, weights: IntArray) -> tuple[Counts, Cuts]:
        """The counts (C,) at the threshold, and the cuts (C, K + 1) that tell something."""
        ranked = weights.take(self._order, axis=1)
        rows_below = _sums_before(ranked).take(self._edges, axis=1).astype(np.float64)
        fn = _sums_before(ranked * self._ranked_truth).take(self._edges, axis=1).astype(np.float64)
        positives, rows = fn[:, -2], rows_below[:, -2]
        tp = positives[:, None] - fn
        fp = rows[:, None] - rows_below - tp
        cuts = Cuts(self._scores, tp[:, :-1], fp[:, :-1])
        return Counts(tp[:, -1], rows - positives - fp[:, -1], fp[:, -1], fn[:, -1]), cuts


def draw_weights(units: Units, n_resamples: int, seed: int) -> Iterator[IntArray]:
    """Weights (C, N) of resamples of the units, drawn with replacement; as many units as there are."""
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(units.of_row.size, units.count))
    for start in range(0, n_resamples, at_once):
        shape = (min(at_once, n_resamples - start), units.count)
        picks = rng.integers(0, units.count, size=shape)
        picks += units.count * np.arange(shape[0])[:, None]
        weights = np.bincount(picks.ravel(), minlength=picks.size).reshape(shape)
        yield weights.take(units.of_row, axis=1) if units.grouped else weights


def replicates(ranked: Sequence[Ranked], units: Units, n_resamples: int, seed: int) -> list[dict[str, FloatArray]]:
    """Every metric of the table (n_resamples,) for each of `ranked`, all on the same resamples of the same rows."""
    parts: list[list[FloatArray]] = [[] for _ in ranked]
    for weights in draw_weights(units, n_resamples, seed):
        for one, collected in zip(ranked, parts, strict=True):
            collected.append(one.statistics(weights))
    return [one.metrics(np.concatenate(collected)) for one, collected in zip(ranked, parts, strict=True)]


def _telling_edges(ranked: FloatArray, ranked_truth: IntArray) -> IntArray:
    """Positions in the ranked rows where a cut tells something: 0, N, and the edges of ties that hold a positive.

    Between two ties without positives neither the ROC curve turns nor the recall rises, so no area changes.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1, [ranked.size]])
    holds = np.add.reduceat(ranked_truth, edges[:-1]) > 0
    kept = np.concatenate([[True], holds[1:] | holds[:-1], [True]])
    telling: IntArray = edges[kept]
    return telling


def _sums_before(weights: IntArray) -> IntArray:
    """Sums (C, N + 1) of the weights (C, N) before each position."""
    sums = np.empty((weights.shape[0], weights.shape[1] + 1), dtype=np.int64)
    sums[:, 0] = 0
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _named(basis: Basis) -> list[str]:
    """The metrics of one basis, in the order of the table."""
    return [name for name, metric in METRICS.items() if metric.basis is basis]

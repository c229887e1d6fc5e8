"""Selective conformal risk control: when to answer and when to hand over, so that the risk of an answer is kept.

An image is answered 1 where the margin is at least `hi`, 0 where it is below `lo`, and handed to a person between. With
confidence 1 - delta over calibration sets, the risk among what is answered is at most alpha, at any sample size.

For a miss rate, `hi` is set by the negatives alone: at most a share alpha of them lies above it. Given the labels the
positives know nothing of it, so for them it is fixed, and the miss rate among answered positives rises with `lo`. So
`lo` is raised from handing over the most, each step tested by the exact binomial tail, and the first failure stops it:
a fixed sequence, which needs no correction (Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052; the
binomial tail as in Geifman and El-Yaniv 2017, arXiv 1705.08500; the name after arXiv 2512.12844). A false alarm rate is
the same in the mirror. Error counts both classes: a third of the units sets the middle and the start, the rest certify.

The bound is on the margin, which calibration only stretches: fitting the calibrator on the same rows costs nothing.
Rows of one group (frames of a track) are not independent: one row of each group is drawn, and the risk is that of a
frame of a track. What cannot be certified is not controlled at all, and says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from streetvision.calibration.config import RiskConfig
from streetvision.eval.counts import BoolArray, FloatArray

IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class Certificate:
    """Where answers begin, or why none can be certified."""

    lo: float | None
    """Answered 0 below this margin; None where nothing is certified."""
    hi: float | None
    """Answered 1 from this margin on."""
    n: int
    """Independent units that the test counted: rows or groups of the class at risk, or of both for error."""
    reason: str
    """A sentence on what was certified, or on what is missing."""


class ScoredRows(NamedTuple):
    """Rows that the certificate is drawn from."""

    margin: FloatArray
    """(N,)"""
    truth: BoolArray
    """(N,)"""
    groups: Sequence[str | None]
    """(N,) None stands alone."""


def certify(rows: ScoredRows, config: RiskConfig, *, seed: int) -> Certificate:
    """The widest answers whose risk is certified; `seed` draws the row of each group."""
    return KINDS[config.kind](rows, config, seed)


def certify_fnr(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """Misses among answered positives are at most alpha."""
    positives = rows.margin[one_per_group(rows.groups, rows.truth, seed)]
    others = rows.margin[~rows.truth & ~_shares_a_group(rows.groups, rows.truth)]
    if not others.size:
        return Certificate(None, None, positives.size, "cannot be certified without rows of the other class")
    hi = _above_all_but(others, config.alpha)
    below = np.sort(positives[positives < hi])
    hits = positives.size - below.size
    misses = np.arange(below.size + 1)
    passed = binom.cdf(misses, hits + misses, config.alpha) <= config.delta  # rising in the misses
    if not passed[0]:
        return Certificate(None, None, positives.size, _too_few(positives.size, hits, config))
    allowed = int(np.count_nonzero(passed)) - 1
    lo = float(below[allowed]) if allowed < below.size else hi
    return Certificate(lo, hi, positives.size, _promise(positives.size, config))


def certify_fpr(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """False alarms among answered negatives are at most alpha: `certify_fnr` in the mirror."""
    found = certify_fnr(ScoredRows(-rows.margin, ~rows.truth, rows.groups), config, seed)
    if found.lo is None or found.hi is None:
        return found
    return Certificate(_next(-found.hi), _next(-found.lo), found.n, found.reason)


def certify_error(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """Wrong answers of both kinds are at most alpha of what is answered."""
    units = one_per_group(rows.groups, np.ones(rows.truth.size, dtype=bool), seed)
    first, rest = np.split(np.random.default_rng(seed).permutation(units), [units.size // 3])
    if not first.size:
        return Certificate(None, None, rest.size, _too_few(rest.size, rest.size, config))
    middle = _fewest_errors(rows.margin[first], rows.truth[first])
    start = 1 - 2 * min_accepted(config) / rest.size
    begin = float(np.quantile(np.abs(rows.margin[first] - middle), start)) if start > 0 else -1.0
    distance = np.abs(rows.margin[rest] - middle)
    order = np.argsort(-distance, kind="stable")
    distance, wrong = distance[order], ((rows.margin[rest] >= middle) != rows.truth[rest])[order]
    answered = np.arange(1, rest.size + 1)
    whole = np.append(distance[1:] < distance[:-1], True)  # equal distances are answered together
    steps = np.flatnonzero(whole & (np.append(distance[1:], -1.0) <= begin))
    passed = binom.cdf(np.cumsum(wrong)[steps], answered[steps], config.alpha) <= config.delta
    if not passed[0]:
        return Certificate(None, None, rest.size, _too_few(rest.size, int(answered[steps[0]]), config))
    last = int(answered[steps[np.argmin(passed) - 1 if not passed.all() else -1]])
    lo = hi = middle
    if last < rest.size:  # the nearest that is not answered may lie on the middle itself
        lo, hi = middle - float(distance[last]), _next(middle + float(distance[last]))
    return Certificate(lo, hi, rest.size, _promise(rest.size, config))


KINDS: Mapping[str, Callable[[ScoredRows, RiskConfig, int], Certificate]] = {
    "fnr": certify_fnr,
    "fpr": certify_fpr,
    "error": certify_error,
}
"""Name of a risk -> what certifies it."""

AT_RISK = {"fnr": "positives", "fpr": "negatives", "error": "rows"}
RISK_NAMES = {"fnr": "FNR", "fpr": "FPR", "error": "error"}


def abstained(margin: FloatArray, lo: float, hi: float) -> BoolArray:
    """True (N,) where a margin lies between the two ends: a person decides."""
    between: BoolArray = (margin >= lo) & (margin < hi)
    return between


def min_accepted(config: RiskConfig) -> int:
    """How many answered units without an error it takes to certify anything: (1 - alpha)^m <= delta."""
    return int(np.ceil(np.log(config.delta) / np.log1p(-config.alpha)))


def one_per_group(groups: Sequence[str | None], eligible: BoolArray, seed: int) -> IntArray:
    """The eligible rows without a group, and of each group one eligible row, drawn evenly; indices, rising."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(eligible))
    drawn: dict[object, int] = {}
    for row in order.tolist():
        group = groups[row]
        drawn.setdefault(row if group is None else (group,), row)
    return np.sort(np.array(list(drawn.values()), dtype=np.intp))


def _shares_a_group(groups: Sequence[str | None], rows: BoolArray) -> BoolArray:
    """Rows (N,) whose group holds one of `rows`."""
    taken = {group for group, inside in zip(groups, rows.tolist(), strict=True) if inside and group is not None}
    return np.array([group in taken for group in groups], dtype=bool)


def _above_all_but(values: FloatArray, share: float) -> float:
    """The lowest bound that at most a share of the values reaches."""
    ordered = np.sort(values)[::-1]
    return _next(float(ordered[int(share * values.size)]))


def _fewest_errors(margin: FloatArray, truth: BoolArray) -> float:
    """The cut with the fewest errors: the middle of its gap, or a step beyond the ends."""
    order = np.argsort(margin, kind="stable")
    at, of_row = np.unique(margin[order], return_inverse=True)
    signs = np.bincount(of_row, weights=np.where(truth[order], 1.0, -1.0), minlength=at.size)
    cut = int(np.argmin(np.append(0.0, np.cumsum(signs))))
    edges = np.concatenate([[at[0] - 1.0], at, [at[-1] + 1.0]])
    return float((edges[cut] + edges[cut + 1]) / 2)


def _next(value: float) -> float:
    return float(np.nextafter(value, np.inf))


def _promise(n: int, config: RiskConfig) -> str:
    return (
        f"{RISK_NAMES[config.kind]} <= {config.alpha:g} among the answered with {1 - config.delta:g} confidence, "
        f"certified with {n} {AT_RISK[config.kind]}"
    )


def _too_few(n: int, answered: int, config: RiskConfig) -> str:
    what = AT_RISK[config.kind]
    return (
        f"{RISK_NAMES[config.kind]} <= {config.alpha:g} cannot be certified with {n} {what}: {answered} of them are "
        f"answered to begin with, and it takes at least {min_accepted(config)} without enough errors to doubt it"
    )

"""Selective conformal risk control: abstain between two margins, so that the risk of the predictions is bounded.

The policy predicts class 1 where the margin is at least `hi`, class 0 where it is below `lo`, and abstains in between.
An image without abstention is accepted. With probability 1 - delta over calibration sets, the risk among accepted
images is at most alpha. The guarantee holds for any sample size.

FNR: `hi` depends on the negatives only: at most a share alpha of them reaches it. Given the labels, the positives are
independent of `hi`, and their risk increases with `lo`. So `lo` is raised stepwise from the rule that abstains most.
Each step is tested by the exact binomial tail, and the first failure stops the procedure. Fixed-sequence testing needs
no correction for multiple tests. FPR is the same with both classes exchanged. The error rate concerns both classes: a
third of the units sets the center and the first step, and the others certify.

The bounds are on margins, and calibration is monotone in the margin. So the calibrator may be fitted on the same rows.
Rows of one group (frames of a track) are dependent: one row is drawn from each group, and the guarantee is for a frame
drawn from a track. Without a certificate there is no abstention, and the reason is reported.

References:
    Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052 (fixed-sequence testing).
    Geifman and El-Yaniv 2017, arXiv 1705.08500 (binomial tail).
    Selective conformal risk control, 2025, arXiv 2512.12844 (the name).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # a part of it is loaded at its first use: a prediction needs few of them
from numpy.typing import NDArray

from streetvision.calibration.config import RiskConfig
from streetvision.eval.counts import BoolArray, FloatArray

IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class Certificate:
    """The certified bounds of abstention, or the reason why there are none."""

    lo: float | None
    """Class 0 is predicted below this margin; None: not certified."""
    hi: float | None
    """Class 1 is predicted at and above this margin; None: not certified."""
    n: int
    """Number of independent units (rows or groups) in the test: of the class at risk, or of both classes for error."""
    reason: str
    """The certified statement, or why nothing could be certified."""


class ScoredRows(NamedTuple):
    """The rows of the calibration set, N rows."""

    margin: FloatArray
    """(N,)"""
    truth: BoolArray
    """(N,)"""
    groups: Sequence[str | None]
    """(N,) group ids; None: the row is a group of its own."""


def certify(rows: ScoredRows, config: RiskConfig, *, seed: int) -> Certificate:
    """Return the certificate with the least abstention. `seed` is for the row drawn from each group."""
    return CERTIFIERS[config.kind](rows, config, seed)


def certify_fnr(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """Bound the false negative rate among accepted positives by alpha."""
    positives = rows.margin[one_per_group(rows.groups, rows.truth, seed)]
    # Negatives in a group with positives may depend on them, so they must not influence `hi`.
    groups_with_positives = {g for g, positive in zip(rows.groups, rows.truth.tolist(), strict=True) if positive}
    shares_group = np.array([g is not None and g in groups_with_positives for g in rows.groups], dtype=bool)
    negatives = np.sort(rows.margin[~rows.truth & ~shares_group])[::-1]
    if not negatives.size:
        return Certificate(None, None, positives.size, "cannot be certified without rows of the other class")
    # The lowest bound that at most a share alpha of the negatives reaches.
    hi = _next_float(float(negatives[int(config.alpha * negatives.size)]))
    below_hi = np.sort(positives[positives < hi])
    true_positives = positives.size - below_hi.size
    # `lo` at the k-th of these margins gives k false negatives; the tail probability increases with k.
    false_negatives = np.arange(below_hi.size + 1)
    passed = scipy.stats.binom.cdf(false_negatives, true_positives + false_negatives, config.alpha) <= config.delta
    if not passed[0]:
        return Certificate(None, None, positives.size, _not_certified(positives.size, true_positives, config))
    allowed = int(np.count_nonzero(passed)) - 1
    lo = float(below_hi[allowed]) if allowed < below_hi.size else hi
    return Certificate(lo, hi, positives.size, _certified(positives.size, config))


def certify_fpr(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """Bound the false positive rate among accepted negatives by alpha: `certify_fnr` with the classes exchanged."""
    mirrored = certify_fnr(ScoredRows(-rows.margin, ~rows.truth, rows.groups), config, seed)
    if mirrored.lo is None or mirrored.hi is None:
        return mirrored
    # Negation turns "at least" into "at most", so each bound moves to the next float.
    return Certificate(_next_float(-mirrored.hi), _next_float(-mirrored.lo), mirrored.n, mirrored.reason)


def certify_error(rows: ScoredRows, config: RiskConfig, seed: int) -> Certificate:
    """Bound the share of wrong predictions among accepted rows by alpha."""
    units = one_per_group(rows.groups, np.ones(rows.truth.size, dtype=bool), seed)
    tuning, testing = np.split(np.random.default_rng(seed).permutation(units), [units.size // 3])
    if not tuning.size:
        return Certificate(None, None, testing.size, _not_certified(testing.size, testing.size, config))
    center = _min_error_threshold(rows.margin[tuning], rows.truth[tuning])
    # The first step accepts about twice the minimum number of units, those farthest from the center.
    abstained_at_start = 1 - 2 * min_accepted(config) / testing.size
    tuning_distance = np.abs(rows.margin[tuning] - center)
    start = float(np.quantile(tuning_distance, abstained_at_start)) if abstained_at_start > 0 else -1.0
    distance = np.abs(rows.margin[testing] - center)
    order = np.argsort(-distance, kind="stable")
    distance = distance[order]
    wrong = ((rows.margin[testing] >= center) != rows.truth[testing])[order]
    accepted = np.arange(1, testing.size + 1)
    # A step ends where the next distance is smaller: rows at equal distance are accepted together.
    next_distance = np.append(distance[1:], -1.0)
    steps = np.flatnonzero((next_distance < distance) & (next_distance <= start))
    passed = scipy.stats.binom.cdf(np.cumsum(wrong)[steps], accepted[steps], config.alpha) <= config.delta
    if not passed[0]:
        return Certificate(None, None, testing.size, _not_certified(testing.size, int(accepted[steps[0]]), config))
    last_passed = steps[-1] if passed.all() else steps[np.argmin(passed) - 1]
    n_accepted = int(accepted[last_passed])
    if n_accepted == testing.size:
        lo = hi = center
    else:
        # The nearest abstained row may be at the center itself, so `hi` is above its margin.
        nearest_abstained = float(distance[n_accepted])
        lo, hi = center - nearest_abstained, _next_float(center + nearest_abstained)
    return Certificate(lo, hi, testing.size, _certified(testing.size, config))


CERTIFIERS: Mapping[str, Callable[[ScoredRows, RiskConfig, int], Certificate]] = {
    "fnr": certify_fnr,
    "fpr": certify_fpr,
    "error": certify_error,
}
"""Kind of risk -> its certifier."""

UNITS_AT_RISK = {"fnr": "positives", "fpr": "negatives", "error": "rows"}
RISK_NAMES = {"fnr": "FNR", "fpr": "FPR", "error": "error"}


def abstained(margin: FloatArray, lo: float, hi: float) -> BoolArray:
    """Return where margins (N,) are in [lo, hi), so that the policy abstains."""
    between: BoolArray = (margin >= lo) & (margin < hi)
    return between


def min_accepted(config: RiskConfig) -> int:
    """Return the minimum number m of accepted units for a certificate without errors: (1 - alpha)^m <= delta."""
    return int(np.ceil(np.log(config.delta) / np.log1p(-config.alpha)))


def fewest_units(config: RiskConfig) -> int:
    """Return the number of independent units of the class at risk below which no certificate is possible."""
    accepted = min_accepted(config)
    # For the error rate, a third of the units is not in the test.
    return accepted + accepted // 2 + 1 if config.kind == "error" else accepted


def one_per_group(groups: Sequence[str | None], eligible: BoolArray, seed: int) -> IntArray:
    """Return the sorted indices of one random eligible row per group, and of all eligible rows without a group."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(eligible))
    drawn: dict[object, int] = {}
    for row in order.tolist():
        group = groups[row]
        drawn.setdefault(row if group is None else (group,), row)
    return np.sort(np.array(list(drawn.values()), dtype=np.intp))


def _min_error_threshold(margin: FloatArray, truth: BoolArray) -> float:
    """Return the threshold with the fewest errors: the center of its gap, or 1 beyond the ends."""
    order = np.argsort(margin, kind="stable")
    distinct, index = np.unique(margin[order], return_inverse=True)
    # Moving the threshold up past a positive adds an error; past a negative, it removes one.
    change = np.bincount(index, weights=np.where(truth[order], 1.0, -1.0), minlength=distinct.size)
    best = int(np.argmin(np.append(0.0, np.cumsum(change))))
    edges = np.concatenate([[distinct[0] - 1.0], distinct, [distinct[-1] + 1.0]])
    return float((edges[best] + edges[best + 1]) / 2)


def _next_float(value: float) -> float:
    return float(np.nextafter(value, np.inf))


def _certified(n: int, config: RiskConfig) -> str:
    return (
        f"{RISK_NAMES[config.kind]} <= {config.alpha:g} among accepted images with confidence {1 - config.delta:g}, "
        f"certified with {n} {UNITS_AT_RISK[config.kind]}"
    )


def _not_certified(n: int, accepted: int, config: RiskConfig) -> str:
    return (
        f"{RISK_NAMES[config.kind]} <= {config.alpha:g} cannot be certified with {n} {UNITS_AT_RISK[config.kind]}: the "
        f"first test accepts {accepted} of them, and at least {min_accepted(config)} without an error are required"
    )

"""Bounds for the probability of an error that hold at all times, however often they are read.

For independent errors with a probability of at most m, the mixture over q > m of the likelihood ratios of q to m is a
supermartingale that starts below 1, so it ever reaches 1/alpha with probability at most alpha (Robbins, Statistical
methods related to the law of the iterated logarithm, Ann. Math. Stat. 41, 1970; Howard et al., Time-uniform,
nonparametric, nonasymptotic confidence sequences, Ann. Stat. 49, 2021). The mixture is over Jeffreys' beta
distribution. The upper bound uses q < m.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betaln, xlog1py, xlogy

IntArray = NDArray[np.int64]

PRIOR = 0.5
"""Both parameters of the beta distribution."""
ITERATIONS = 50
"""Steps of the bisection; each halves the error."""


def log_evidence_above(errors: ArrayLike, n: ArrayLike, risk: float) -> NDArray[np.float64]:
    """Return the log of the evidence, an e-value at all times, that the probability of an error is above `risk`."""
    return _log_evidence(np.asarray(errors), np.asarray(n), risk, above=True)


def risk_bounds(errors: int, n: int, alpha: float) -> tuple[float, float]:
    """Return a lower and an upper bound of the probability of an error.

    Args:
        errors: Number of errors so far.
        n: Number of independent predictions so far.
        alpha: Each bound is ever wrong with at most this probability.
    """
    if n == 0:
        return 0.0, 1.0
    rate, limit = errors / n, -np.log(alpha)
    counted = np.asarray(errors), np.asarray(n)

    def solve(inside: float, outside: float, *, above: bool) -> float:
        for _ in range(ITERATIONS):
            middle = (inside + outside) / 2
            if _log_evidence(*counted, middle, above=above) >= limit:
                outside = middle
            else:
                inside = middle
        return outside

    return solve(rate, 0.0, above=True), solve(rate, 1.0, above=False)


def _log_evidence(errors: IntArray, n: IntArray, risk: float, *, above: bool) -> NDArray[np.float64]:
    a, b = PRIOR + errors, PRIOR + n - errors
    tail = (betaincc if above else betainc)(a, b, risk)
    with np.errstate(divide="ignore"):
        mixture = betaln(a, b) - betaln(PRIOR, PRIOR) + np.log(tail)
        return np.asarray(mixture - xlogy(errors, risk) - xlog1py(n - errors, -risk))

"""The gate of an optional stage: whether its model is better than the model without it, on the same rows."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from streetvision.contracts.errors import DataError
from streetvision.eval.metrics import nll, nll_terms
from streetvision.eval.predictions import Predictions

LEVEL = 0.8
"""Confidence of the one-sided bound."""
LEAST_GAIN = 1e-3
"""Smallest gain in nats, so that a stage with no effect to speak of is left out."""


@dataclass(frozen=True)
class GateDecision:
    """Comparison of a candidate with its baseline by their negative log-likelihood (NLL)."""

    accepted: bool
    """Whether `bound` is below 0 and there is no objection."""
    candidate_nll: float
    baseline_nll: float
    difference: float
    """NLL of the candidate minus that of the baseline; below 0, the candidate is better."""
    bound: float
    """One-sided upper confidence bound of the difference."""
    level: float
    """Confidence of the bound."""
    units: int
    """Independent groups."""

    objection: str | None
    """Why the candidate is not accepted although `bound` is below 0; None otherwise."""


def compare_nll(candidate: Predictions, baseline: Predictions, *, level: float = LEVEL) -> GateDecision:
    """Accept the candidate if the upper confidence bound of its NLL minus the baseline's is below 0.

    A gain below LEAST_GAIN is not accepted, nor a candidate whose NLL is not below that of a constant probability: of
    two models that predict nothing, chance would decide.
    The bound is that of Student's t for the mean over rows, whose standard error is computed from the sums of groups.

    Args:
        candidate: Predictions of the model with the stage.
        baseline: Predictions of the model without it, for the same rows.
        level: Confidence of the bound.

    Raises:
        DataError: The rows or the groups differ, or there is one group only.
    """
    if not np.array_equal(candidate.labels, baseline.labels) or candidate.groups != baseline.groups:
        raise DataError("the two models have different labels or groups", "predict the same rows")
    units = candidate.units
    if units.count < 2:
        raise DataError("a comparison needs at least two groups", "give each place or ride its own group")
    losses = [nll_terms(p.labels, p.probabilities) for p in (candidate, baseline)]
    per_row = losses[0].values - losses[1].values
    difference = float(per_row.mean())
    sums = units.sums(per_row - difference)
    error = float(np.sqrt(np.square(sums).sum() * units.count / (units.count - 1)) / len(per_row))
    bound = difference + float(student_t.ppf(level, units.count - 1)) * error
    candidate_nll, constant = float(losses[0].values.mean()), np.full(len(per_row), np.mean(candidate.labels))
    objection = None
    if bound < 0 and difference > -LEAST_GAIN:
        objection = f"the gain is below {LEAST_GAIN:g}"
    elif bound < 0 and candidate_nll >= nll(candidate.labels, constant):
        objection = "a constant probability is not worse"
    return GateDecision(
        accepted=bound < 0 and objection is None,
        candidate_nll=candidate_nll,
        baseline_nll=float(losses[1].values.mean()),
        difference=difference,
        bound=bound,
        level=level,
        units=units.count,
        objection=objection,
    )

"""The gates of optional stages: a stage ships if its model is better than the model without it, on the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from streetvision.calibration.crossfit import CalibrationSet, crossfit
from streetvision.calibration.parametric import PlattCalibrator
from streetvision.contracts.policies import Gate
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import GateSetting
from streetvision.contracts.split_contracts import Row
from streetvision.eval.gate import LEVEL, GateDecision, compare_nll
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import write_json_atomic

CALIBRATION_FOLDS = 5
LEVEL_OF_FINE_TUNING = 0.5
"""Confidence with which fine-tuning must be better: the lower NLL decides. It costs nothing in a prediction and helps
on most data, so a comparison of few images that is in doubt must not leave it out."""


def one_group_problem(rows: Sequence[Row]) -> str | None:
    """Return why models cannot be compared on these rows: `problem` of `decide`; None if they can."""
    return "there is one group only" if len({row.group or row.sha256 for row in rows}) < 2 else None


def calibrated_predictions(logits: Tensor, rows: Sequence[Row], *, seed: int) -> Predictions:
    """Return the predictions after Platt's calibration, cross-fitted by groups, as a model is used after calibration.

    Args:
        logits: (N, 2).
        rows: N rows, of two groups at least.
        seed: Seed of the folds of the calibration.
    """
    labels, groups = np.array([row.label for row in rows]), [row.group or row.sha256 for row in rows]
    p = crossfit(
        lambda part: PlattCalibrator().fit(part.logits, part.labels),
        CalibrationSet(logits.numpy(), labels, groups),
        folds=min(CALIBRATION_FOLDS, len(set(groups))),
        seed=seed,
    )
    return Predictions(labels, p, groups)


def decide(
    setting: GateSetting,
    candidate: Predictions | None,
    baseline: Predictions | None,
    *,
    problem: str | None = None,
    stage: str,
    section: str,
    path: Path,
    progress: Progress,
    share: float | None = None,
    details: Mapping[str, JsonValue] | None = None,
    addition: str = "",
    level: float = LEVEL,
) -> Gate:
    """Decide whether a stage ships, and write gate.json.

    Args:
        setting: on: it ships only if it is better; off: it ships, and nothing is compared; only_report: it ships.
        candidate: Predictions of the model with the stage; None for gate=off or if there is a `problem`.
        baseline: Predictions of the model without it, for the same rows; None for gate=off or if there is a `problem`.
        problem: Why there are no predictions.
        stage: Name of the stage in a sentence, for example "the fusion".
        section: Name of the section of settings, for messages.
        path: gate.json.
        progress: Receives a warning where the stage ships and is not better, or where nothing can be compared.
        share: Share of the weights of the stage in the candidate; None for a stage without shares.
        details: Further figures for gate.json.
        addition: Text that is added to the reason.
        level: Confidence with which the stage must be better.
    """
    figures: dict[str, Any] = {}
    better = None
    if setting == "off":
        reason = f"{section}.gate=off"
    elif candidate is None or baseline is None:
        reason = f"it cannot be compared: {problem}"
    else:
        comparison = compare_nll(candidate, baseline, level=level)
        better = comparison.accepted
        bound = f", {100 * level:.0f} % bound {comparison.bound:+.3f}" if level > LEVEL_OF_FINE_TUNING else ""
        reason = (
            f"NLL {comparison.candidate_nll:.3f} with it, {comparison.baseline_nll:.3f} without; "
            f"difference {comparison.difference:+.3f}{bound}{_objection(comparison)}{addition}"
        )
        figures = asdict(comparison)
        del figures["accepted"], figures["objection"]
    ships = setting != "on" or better is True
    if setting == "only_report" and not better:
        progress.warn(f"{stage} is not better ({reason}), and ships because {section}.gate=only_report")
    elif problem is not None and not ships:
        progress.warn(f"{stage} does not ship: {reason}")
    gate = Gate(
        gate=setting,
        ships=ships,
        better=better,
        reason=reason,
        share=share if share is None or ships else 0.0,
        details=dict(details or {}),
        **figures,
    )
    write_json_atomic(path, gate.model_dump(mode="json"))
    return gate


@dataclass(frozen=True)
class Compared:
    """The predictions of several candidates for a stage, and of the model without it, for the same rows."""

    names: tuple[str, ...]
    """The cheapest first."""
    candidates: tuple[Predictions, ...] = ()
    """Empty if nothing can be compared, or need not be."""
    baseline: Predictions | None = None
    problem: str | None = None
    """Why there are no predictions."""


def decide_cheapest(
    setting: GateSetting, compared: Compared, *, stage: str, section: str, path: Path, progress: Progress
) -> tuple[int, Gate]:
    """Decide whether a stage ships, and which of its candidates, and write gate.json.

    Each candidate is compared with the baseline. Of those that are better than it, or of all if none is, the cheapest
    is taken than which the best is not better.

    Returns:
        Position of the candidate that is taken, and the decision on it.
    """
    number, addition, baseline = 0, "", compared.baseline
    details: dict[str, JsonValue] = {}
    if baseline is not None:
        decisions = [compare_nll(candidate, baseline) for candidate in compared.candidates]
        accepted = [at for at, decision in enumerate(decisions) if decision.accepted] or list(range(len(decisions)))
        best = min(accepted, key=lambda at: decisions[at].candidate_nll)
        candidates = compared.candidates
        number = next(at for at in accepted if at == best or not compare_nll(candidates[best], candidates[at]).accepted)
        if len(decisions) > 1:
            named = dict(zip(compared.names, decisions, strict=True))
            details = {
                "taken": compared.names[number],
                "candidates": {name: asdict(decision) for name, decision in named.items()},
            }
            others = [name for name in compared.names if name != compared.names[number]]
            addition = "".join(f"; {name}: {_short(named[name])}" for name in others)
    gate = decide(
        setting,
        compared.candidates[number] if baseline is not None else None,
        baseline,
        problem=compared.problem,
        stage=stage,
        section=section,
        path=path,
        progress=progress,
        details=details,
        addition=addition,
    )
    return number, gate


def _short(decision: GateDecision) -> str:
    return f"NLL {decision.candidate_nll:.3f}, bound {decision.bound:+.3f}{_objection(decision)}"


def _objection(decision: GateDecision) -> str:
    return "" if decision.objection is None else f", {decision.objection}"

"""The gates of optional stages: a stage ships if its model is better than the model without it, on the same rows."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from streetvision.contracts.policies import Gate
from streetvision.contracts.progress import Progress
from streetvision.contracts.settings import GateSetting
from streetvision.eval.gate import compare_nll
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import write_json_atomic


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
    """
    figures: dict[str, Any] = {}
    better = None
    if setting == "off":
        reason = f"{section}.gate=off"
    elif candidate is None or baseline is None:
        reason = f"it cannot be compared: {problem}"
    else:
        comparison = compare_nll(candidate, baseline)
        better = comparison.accepted
        reason = (
            f"NLL {comparison.candidate_nll:.3f} with it, {comparison.baseline_nll:.3f} without; "
            f"difference {comparison.difference:+.3f}, {100 * comparison.level:.0f} % bound {comparison.bound:+.3f}"
        )
        figures = asdict(comparison)
        del figures["accepted"]
    ships = setting != "on" or better is True
    if setting == "only_report" and not better:
        progress.warn(f"{stage} is not better ({reason}), and ships because {section}.gate=only_report")
    elif problem is not None:
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

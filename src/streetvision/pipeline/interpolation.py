"""Fine-tuned weights, interpolated with those that training started from; VAL_SELECT picks the share.

References:
    WiSE-FT: Wortsman et al., arXiv 2109.01903. Fine-tuning from a solved head: Kumar et al., arXiv 2202.10054.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.eval.gate import GateDecision, compare_nll
from streetvision.eval.metrics import positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import write_json_atomic
from streetvision.io.tensors import load_into
from streetvision.models.config import ClassifierDescription
from streetvision.models.module import build_classifier
from streetvision.training.scoring import apply_to_batches, evaluation_loader

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the fine-tuned weights that are tried; 0 is the probe."""


@dataclass(frozen=True)
class Interpolated:
    """The weights that ship."""

    share: float
    """Share of the fine-tuned weights; 0: the probe ships."""
    state: dict[str, Tensor]
    predictions: Predictions
    """Of VAL_SELECT."""
    gate: GateDecision
    """The best share above 0 against the probe."""


def interpolate(state: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return start + share * (state - start) for every floating-point tensor; others are those of `state`."""
    if share in (0.0, 1.0):
        return dict(start if share == 0.0 else state)
    return {
        name: start[name].lerp(value, share) if value.is_floating_point() else value for name, value in state.items()
    }


def pick_share(
    tuned: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    context: Context,
    description: ClassifierDescription,
    *,
    gated: bool,
) -> Interpolated:
    """Choose the share with the lowest NLL on VAL_SELECT, and write gate.json.

    Args:
        tuned: State dict after fine-tuning, with adapters merged.
        start: State dict of the probe.
        context: Of phase 1.
        description: The classifier.
        gated: Take a share above 0 only if it is better than the probe with the confidence of `compare_nll`.
    """
    rows, loader = context.rows(Split.VAL_SELECT), context.settings(LoaderConfig)
    labels = [row.label for row in rows]
    groups = [row.group or row.sha256 for row in rows]
    predictions: dict[float, Predictions] = {}
    for share in SHARES:
        classifier = build_classifier(description)
        load_into(classifier, interpolate(tuned, start, share), source="the interpolated weights")
        with evaluation_loader(classifier, rows, root=context.data_root, loader=loader) as batches:
            logits, _ = apply_to_batches(
                classifier, batches, total=len(batches), label=f"share {share:.0%}", progress=context.progress
            )
        predictions[share] = Predictions(labels, positive_probability(logits.numpy()), groups)
    decisions = {share: compare_nll(p, predictions[0.0]) for share, p in predictions.items() if share > 0}
    best = min(decisions, key=lambda share: decisions[share].candidate_nll)
    gate = decisions[best]
    accepted = gate.accepted if gated else gate.difference < 0
    share = best if accepted else 0.0
    write_json_atomic(
        context.schema.finetuning_gate_json,
        {
            "share": share,
            "gated": gated,
            "nll": {str(s): decision.candidate_nll for s, decision in decisions.items()},
            "best_share": best,
            **asdict(gate),
            "accepted": accepted,
        },
    )
    return Interpolated(share, interpolate(tuned, start, share), predictions[share], gate)

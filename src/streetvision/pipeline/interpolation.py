"""Fine-tuned weights, interpolated with those that training started from; VAL_SELECT picks the share.

References:
    WiSE-FT: Wortsman et al., arXiv 2109.01903. Fine-tuning from a solved head: Kumar et al., arXiv 2202.10054.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Gate
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.eval.metrics import nll, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.io.tensors import load_into
from streetvision.models.config import ClassifierDescription
from streetvision.models.module import build_classifier
from streetvision.pipeline.gates import LEVEL_OF_FINE_TUNING, calibrated_predictions, decide, one_group_problem
from streetvision.training.config import FinetuningConfig
from streetvision.training.scoring import apply_to_batches, evaluation_loader

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the fine-tuned weights that are tried; 0 is the probe."""


@dataclass(frozen=True)
class Interpolated:
    """The weights that ship."""

    state: dict[str, Tensor]
    gate: Gate
    """The decision; its share of the fine-tuned weights is 0 if the probe ships."""
    predictions: Predictions | None
    """Predictions on VAL_SELECT by the weights that ship, uncalibrated; None for training.gate=off."""

    @property
    def share(self) -> float:
        """Share of the fine-tuned weights that ships."""
        assert self.gate.share is not None
        return self.gate.share


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
    config: FinetuningConfig,
    description: ClassifierDescription,
    logits_of_probe: Tensor | None,
) -> Interpolated:
    """Choose the share with the lowest NLL on VAL_SELECT after calibration, decide if it ships, and write gate.json.

    Args:
        tuned: State dict after fine-tuning, with adapters merged.
        start: State dict that fine-tuning started from.
        context: Context of phase 1.
        config: Settings with `gate`.
        description: The classifier that was fine-tuned.
        logits_of_probe: (M, 2) of VAL_SELECT by the probe, which is the share 0 and may have another size of the input;
            None for training.gate=off.
    """
    rows = context.rows(Split.VAL_SELECT)
    logits: dict[float, Tensor] = {}
    if logits_of_probe is not None:
        logits[0.0] = logits_of_probe
        for share in SHARES[1:]:
            logits[share] = _logits(interpolate(tuned, start, share), context, description, share)
    problem = one_group_problem(rows)
    compared: dict[float, Predictions] = {}
    if problem is None:
        compared = {share: calibrated_predictions(each, rows, seed=config.seed) for share, each in logits.items()}
    losses = {share: nll(p.labels, p.probabilities) for share, p in compared.items()}
    best = min(SHARES[1:], key=losses.__getitem__) if losses else 1.0
    gate = decide(
        config.gate,
        compared.get(best),
        compared.get(0.0),
        problem=problem,
        stage="fine-tuning",
        level=LEVEL_OF_FINE_TUNING,
        section="training",
        path=context.schema.finetuning_gate_json,
        progress=context.progress,
        share=best,
        details={"nll_by_share": {str(share): loss for share, loss in losses.items()}},
    )
    assert gate.share is not None
    shipped = None
    if gate.share in logits:
        labels, groups = [row.label for row in rows], [row.group or row.sha256 for row in rows]
        shipped = Predictions(labels, positive_probability(logits[gate.share].numpy()), groups)
    return Interpolated(interpolate(tuned, start, gate.share), gate, shipped)


def _logits(state: Mapping[str, Tensor], context: Context, description: ClassifierDescription, share: float) -> Tensor:
    """Logits (M, 2) of VAL_SELECT."""
    rows, loader = context.rows(Split.VAL_SELECT), context.settings(LoaderConfig)
    classifier = build_classifier(description)
    load_into(classifier, state, source="the interpolated weights")
    with evaluation_loader(classifier, rows, root=context.data_root, loader=loader) as batches:
        logits, _ = apply_to_batches(
            classifier, batches, total=len(batches), label=f"share {share:.0%}", progress=context.progress
        )
    return logits

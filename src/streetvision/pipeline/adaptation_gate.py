"""The gate of phase 4a: how much of the adapted weights ships, by a linear probe on TRAIN.

References:
    Interpolation of weights: WiSE-FT, Wortsman et al., arXiv 2109.01903.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.policies import Gate
from streetvision.eval.metrics import nll
from streetvision.eval.predictions import Predictions
from streetvision.io.tensors import load_into
from streetvision.pipeline.adaptation_probe import AdaptationProbe
from streetvision.pipeline.gates import decide
from streetvision.pipeline.interpolation import interpolate
from streetvision.training.ssl.config import ExPLoRAConfig

FIRST_SHARES = (0.0, 0.5, 1.0)
NEIGHBORS: Mapping[float, tuple[float, ...]] = {0.0: (0.25,), 0.5: (0.25, 0.75), 1.0: (0.75,)}
"""The best of FIRST_SHARES -> the shares that are tried next."""


def shipped_weights(
    probe: AdaptationProbe, original: Mapping[str, Tensor], adapted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Gate]:
    """Return the state dict that phase 1 starts from, and the decision.

    With phase4a.gate=on, it is the share of the adapted weights with the lowest NLL, or the original backbone if the
    share is not better than that. Each share is measured by a linear probe on frozen features: grouped
    cross-validation on a sample of TRAIN, with the penalty and the representation chosen in it.

    Args:
        probe: With any weights; its backbone ends with those that ship.
        original: State dict before the adaptation.
        adapted: State dict after it, with the adapters merged.
    """
    context = probe.context
    config = context.settings(ExPLoRAConfig)
    predictions: dict[float, Predictions] = {}
    problem = None
    losses: dict[float, float] = {}

    def measure(shares: Sequence[float]) -> None:
        for share in shares:
            predicted = predictions[share] = probe.predict(interpolate(adapted, original, share))
            losses[share] = nll(predicted.labels, predicted.probabilities)

    if config.gate != "off":
        try:
            measure(FIRST_SHARES)
            measure(NEIGHBORS[min(losses, key=losses.__getitem__)])
        except DataError as error:  # a class with one group
            problem = error.message
    candidates = {share: loss for share, loss in losses.items() if share > 0}
    best = min(candidates, key=candidates.__getitem__) if candidates and config.gate == "on" else 1.0
    gate = decide(
        config.gate,
        predictions.get(best),
        predictions.get(0.0),
        problem=problem,
        stage="the adapted backbone",
        section="phase4a",
        path=context.schema.adaptation_gate_json,
        progress=context.progress,
        share=best,
        details={"nll_by_share": {str(share): losses[share] for share in sorted(losses)}, "images": len(probe.rows)},
    )
    assert gate.share is not None
    state = interpolate(adapted, original, gate.share)
    load_into(probe.backbone, state, source="the interpolated weights")
    return state, gate

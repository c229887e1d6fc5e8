"""The gate of phase 4a: how much of the adapted weights ships, by the probe of phase 1 on TRAIN.

References:
    Interpolation of weights: WiSE-FT, Wortsman et al., arXiv 2109.01903.
"""

from collections.abc import Mapping

from torch import Tensor

from streetvision.contracts.errors import DataError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Gate
from streetvision.contracts.split_contracts import Split
from streetvision.eval.metrics import nll, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.io.tensors import load_into
from streetvision.models.config import ModelConfig
from streetvision.models.network import Backbone
from streetvision.pipeline.gates import decide
from streetvision.pipeline.interpolation import SHARES, interpolate
from streetvision.pipeline.probe_head import FeatureReader, two_logits
from streetvision.pipeline.scores import cached_features
from streetvision.training.probe import FeatureBank, fit_probe, grouped_folds
from streetvision.training.ssl.config import ExPLoRAConfig


def shipped_weights(
    backbone: Backbone, original: Mapping[str, Tensor], adapted: Mapping[str, Tensor], context: Context
) -> tuple[dict[str, Tensor], Gate]:
    """Return the state dict that phase 1 starts from, and the decision.

    With phase4a.gate=on, it is the share of the adapted weights with the lowest NLL, or the original backbone if the
    share is not better than that. Each share is measured by a linear probe on frozen features: grouped
    cross-validation on TRAIN, with the penalty and the representation chosen in it.

    Args:
        backbone: Any weights; it ends with those that ship.
        original: State dict before the adaptation.
        adapted: State dict after it, with the adapters merged.
        context: Of phase 4a.
    """
    config, predictions, problem = context.settings(ExPLoRAConfig), {}, None
    if config.gate != "off":
        try:
            predictions = {
                share: _out_of_fold(backbone, interpolate(adapted, original, share), context) for share in SHARES
            }
        except DataError as error:  # a class with one group
            problem = error.message
    losses = {share: nll(p.labels, p.probabilities) for share, p in predictions.items()}
    best = min(SHARES[1:], key=losses.__getitem__) if losses and config.gate == "on" else 1.0
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
        details={"nll_by_share": {str(share): loss for share, loss in losses.items()}},
    )
    assert gate.share is not None
    state = interpolate(adapted, original, gate.share)
    load_into(backbone, state, source="the interpolated weights")
    return state, gate


def _out_of_fold(backbone: Backbone, state: Mapping[str, Tensor], context: Context) -> Predictions:
    """Predictions of TRAIN by a probe on the frozen backbone, each row by a fit without its group."""
    load_into(backbone, state, source="the interpolated weights")
    rows, seed = context.rows(Split.TRAIN), context.settings(ExPLoRAConfig).seed
    reader = FeatureReader.of(backbone, context.settings(ModelConfig))
    features, labels = cached_features(context, reader.classifier, Split.TRAIN)
    groups = [row.group or row.sha256 for row in rows]
    probe = fit_probe(
        FeatureBank(features.numpy(), reader.pooling, reader.layers),
        labels.numpy(),
        groups,
        representations=reader.representations,
        class_weights=lambda _: (1.0, 1.0),
        seed=seed,
        progress=context.progress,
        folds=grouped_folds(labels.numpy(), groups, seed=seed),
    )
    assert probe.out_of_fold is not None
    return Predictions(labels.numpy(), positive_probability(two_logits(probe.out_of_fold).numpy()), groups)

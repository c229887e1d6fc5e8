"""The gate rejects stages that do harm, and accepts stages that help, on draws from a known model.

Evidence of tiles is fitted as phase 4c does.

Groups of four images share an effect on the features, as frames of one place do. A stage is a change of the features
of the frozen backbone, or of the logits of the views; both sides are predicted out of fold.
"""

import numpy as np
import pytest
import torch

from streetvision.eval.gate import compare_nll
from streetvision.eval.metrics import positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.models.config import LseConfig
from streetvision.models.evidence import EVIDENCE
from streetvision.pipeline.probe_head import two_logits
from streetvision.training.evidence import fit_evidence
from streetvision.training.probe import FeatureBank, Representation, fit_probe, grouped_folds

N, GROUP, WIDTH, SEEDS = 300, 4, 16, 20


def draw(seed):
    generator = np.random.default_rng(seed)
    effect = np.repeat(generator.normal(size=(N // GROUP, WIDTH)), GROUP, axis=0)
    features = (effect + generator.normal(size=(N, WIDTH))) / np.sqrt(2)
    margin = 1.5 * features[:, 0] + features[:, 1] - 0.5
    labels = (generator.random(N) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    return generator, features, labels, np.repeat(np.arange(N // GROUP), GROUP).tolist()


def out_of_fold(features, labels, groups):
    probe = fit_probe(
        FeatureBank(features.astype(np.float32), "cls", 1),
        labels,
        groups,
        representations=(Representation("cls", 1),),
        class_weights=lambda _: (1.0, 1.0),
        seed=0,
        progress=Silently(),
        folds=grouped_folds(labels, groups, seed=0),
    )
    return Predictions(labels, positive_probability(two_logits(probe.out_of_fold).numpy()), groups)


class Silently:
    """No progress bar."""

    def track(self, items, **_):
        return items


def erased(features, generator):
    """A backbone that no longer sees what the label depends on."""
    changed = features.copy()
    changed[:, :2] = generator.normal(size=(N, 2))
    return changed


def clearer(features, generator):
    """A backbone with fewer features that have nothing to do with the label."""
    changed = features.copy()
    changed[:, 2:] *= 0.2
    return changed


def accepted(stage):
    decisions = []
    for seed in range(SEEDS):
        generator, features, labels, groups = draw(seed)
        candidate = out_of_fold(stage(features, generator), labels, groups)
        decisions.append(compare_nll(candidate, out_of_fold(features, labels, groups)).accepted)
    return sum(decisions)


def test_a_stage_that_erases_the_cue_is_always_rejected():
    assert accepted(erased) == 0


def test_a_stage_that_helps_is_accepted_in_most_draws():
    assert accepted(clearer) >= 16


@pytest.mark.parametrize(("shuffled", "fewest", "most"), [(True, 0, 0), (False, 16, SEEDS)])
def test_views_of_other_images_are_rejected_and_views_with_evidence_are_accepted(shuffled, fewest, most):
    decisions = []
    for seed in range(SEEDS):
        generator, features, labels, groups = draw(seed)
        single = 1.5 * features[:, 0] - 0.5
        evidence = features[:, 1]
        fused = generator.permutation(single) + evidence if shuffled else single + evidence
        candidate, baseline = (
            Predictions(labels, positive_probability(two_logits(margins).numpy()), groups)
            for margins in (fused, single)
        )
        decisions.append(compare_nll(candidate, baseline).accepted)
    assert fewest <= sum(decisions) <= most


TILES = 5


def evidence_of_tiles(seed):
    """Whether the gate accepts evidence that is fitted to half of the images, by the other half: with its tiles, and
    with those of other images."""
    generator, features, labels, groups = draw(seed)
    base = 1.5 * features[:, 0] - 0.5
    tiles = generator.normal(size=(N, TILES, WIDTH))
    tiles[np.arange(N), generator.integers(TILES, size=N), 1] += 4 * labels
    half, tensors = N // 2, (torch.from_numpy(tiles).float(), torch.ones(N, TILES, dtype=torch.bool))
    train = [part[:half] for part in (*tensors, labels, base)]
    fitted = fit_evidence(*train, groups[:half], pooling=LseConfig(), seed=0, progress=Silently())
    module = EVIDENCE["lse"](LseConfig(), TILES, WIDTH)
    module.load_state_dict(fitted.state)
    with torch.no_grad():
        evidence = module(*tensors).margin.numpy()[half:]

    def predictions(margins):
        return Predictions(labels[half:], positive_probability(two_logits(margins).numpy()), groups[half:])

    baseline = predictions(base[half:])
    own, shuffled = base[half:] + evidence, base[half:] + generator.permutation(evidence)
    return [compare_nll(predictions(margins), baseline).accepted for margins in (own, shuffled)]


def test_evidence_of_tiles_is_accepted_and_that_of_shuffled_tiles_is_not():
    own, shuffled = np.sum([evidence_of_tiles(seed) for seed in range(SEEDS)], axis=0)
    assert own >= 16
    assert shuffled == 0

"""The linear probe: what it reads, the solution, the choice of penalty and representation."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.training.probe import STRENGTHS, FeatureBank, Representation, fit_probe, grouped_folds

BLOCKS, WIDTH = 3, 4
ONE = (Representation("cls", 1),)


def drawn(n=120, signal=2.0, seed=0):
    """Features (N, L * K * D), of which the first CLS feature of the last block carries the label."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    blocks = generator.normal(size=(n, BLOCKS, 2, WIDTH))
    blocks[:, -1, 0, 0] += signal * (2 * labels - 1)
    return blocks.reshape(n, -1).astype(np.float32), labels


def fitted(features, labels, representations=ONE, groups=None, class_weights=(1.0, 1.0), seed=0):
    return fit_probe(
        FeatureBank(features, "cls_mean", BLOCKS),
        labels,
        range(len(labels)) if groups is None else groups,
        representations=representations,
        class_weights=lambda _: class_weights,
        seed=seed,
        progress=Silent(),
    )


def test_a_representation_is_read_from_the_bank_after_a_layer_norm():
    features, _ = drawn()
    blocks = torch.from_numpy(features).reshape(-1, BLOCKS, 2, WIDTH)
    for pooling, part in (("cls", 0), ("mean", 1)):
        expected = torch.nn.functional.layer_norm(blocks[:, -2:, part].flatten(1), (2 * WIDTH,)).numpy()
        bank = FeatureBank(features, "cls_mean", BLOCKS)
        assert bank.read(Representation(pooling, 2)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("class_weights", [(1.0, 1.0), (0.6, 3.0)])
def test_the_head_minimizes_the_penalised_loss(class_weights):
    features, labels = drawn(60, signal=0.5)
    probe = fitted(features, labels, class_weights=class_weights)
    x = FeatureBank(features, "cls_mean", BLOCKS).read(ONE[0])
    scale = x.std(axis=0)
    weights = np.asarray(class_weights)[labels]

    def loss(parameters):
        margins = x @ parameters[:-1] + parameters[-1]
        penalty = np.square(parameters[:-1] * scale).sum() / (2 * probe.chosen.strength)
        return (weights * np.logaddexp(0, np.where(labels == 1, -margins, margins))).sum() + penalty

    ours = np.append(probe.weight, probe.bias)
    assert loss(ours) == pytest.approx(minimize(loss, np.zeros_like(ours), tol=1e-10).fun, rel=1e-5)


def test_the_penalty_has_the_lowest_nll_and_the_same_seed_gives_the_same_probe():
    features, labels = drawn()
    probe = fitted(features, labels)
    (candidate,) = probe.candidates
    assert candidate.nll == min(candidate.path)
    assert STRENGTHS[int(np.argmin(candidate.path))] == candidate.strength == probe.chosen.strength
    assert fitted(features, labels).weight.tolist() == probe.weight.tolist()


def test_the_first_representation_is_kept_unless_another_is_clearly_better():
    features, labels = drawn()
    useless, useful = Representation("mean", 1), Representation("cls", 1)
    assert fitted(features, labels, (useless, useful)).chosen.representation == useful
    assert fitted(features, labels, (useful, useless)).chosen.representation == useful
    noise, _ = drawn(signal=0.0)
    assert fitted(noise, labels, (useless, useful)).chosen.representation == useless


def test_rows_of_a_group_are_predicted_by_fits_without_it():
    """Each group has its own random label, so nothing can be learnt from the other groups."""
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 5)
    labels = generator.permutation(np.arange(40) % 2)[groups]
    features = np.repeat(generator.normal(size=(40, BLOCKS * 2 * WIDTH)), 5, axis=0).astype(np.float32)
    everything = (Representation("cls_mean", BLOCKS),)
    assert fitted(features, labels, everything, groups).chosen.nll > 0.6
    assert fitted(features, labels, everything).chosen.nll < 0.3, "copies of a row in other folds give its label away"


def test_with_more_features_than_rows_the_cross_validation_is_that_of_the_features():
    features, labels = drawn(20)
    everything = Representation("cls_mean", BLOCKS)
    groups = np.arange(20) // 10  # two groups, so the folds are known
    path = fitted(features, labels, (everything,), groups).candidates[0].path
    x = FeatureBank(features, "cls_mean", BLOCKS).read(everything)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    assert len(path) == len(STRENGTHS) or np.argmin(path) == len(path) - 3
    for strength, nll in zip(STRENGTHS[: len(path)], path, strict=True):
        losses = []
        for group in (0, 1):
            test = groups == group
            model = LogisticRegression(C=strength, tol=1e-8).fit(x[~test], labels[~test])
            losses.append(-model.predict_log_proba(x[test])[range(10), labels[test]])
        assert nll == pytest.approx(np.mean(losses), rel=0.02)


def test_a_class_with_one_group_is_refused():
    features, labels = drawn(20)
    with pytest.raises(DataError, match="one group"):
        fitted(features, labels, groups=["a" if label else n for n, label in enumerate(labels)])


def test_the_rows_outside_every_fold_have_both_classes():
    """A stratified split of these three groups puts all positives in one fold."""
    labels, groups = np.repeat([0, 1, 0, 1], [100, 100, 50, 1]), np.repeat(["a", "b", "c"], [100, 100, 51])
    folds = grouped_folds(labels, groups, seed=0)
    assert all(set(labels[folds != fold]) == {0, 1} for fold in np.unique(folds))
    assert all(len(set(folds[groups == group])) == 1 for group in "abc")
    features, _ = drawn(len(labels))
    assert np.isfinite(fitted(features, labels, groups=groups).weight).all()

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from streetvision.contracts.errors import DataError
from streetvision.models.config import AnyLossConfig
from streetvision.models.losses import (
    LOSSES,
    CrossEntropy,
    FocalLoss,
    WeightedCrossEntropy,
    balanced_weights,
    make_loss,
)

LABELS = (0, 0, 0, 1)


def config(**settings):
    return TypeAdapter(AnyLossConfig).validate_python({"name": "cross_entropy"} | settings)


def batch(n=64, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    return 4 * torch.randn(n, 2, generator=generator), torch.nn.functional.one_hot(labels, 2).float()


DEFAULTS = {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": "balanced", "gamma": 2.0, "alpha": None}


def reference_loss(settings, logits, targets):
    """The formulas of the papers, row by row in float64."""
    name, smoothing, weights, gamma, alpha = (DEFAULTS | settings).values()
    weights = (4 / 6, 4 / 2) if weights == "balanced" else weights
    alpha = (1, 1) if alpha is None else (1 - alpha, alpha)
    total = 0.0
    for row, target in zip(logits.double().numpy(), targets.double().numpy(), strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        smooth = (1 - smoothing) * target + smoothing / 2
        if name == "focal":
            total -= sum(target[c] * alpha[c] * (1 - p[c]) ** gamma * np.log(p[c]) for c in (0, 1))
        else:
            weight = target @ weights if name == "weighted_cross_entropy" else 1.0
            total -= weight * (smooth @ np.log(p))
    return total / len(logits)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.2},
        {"name": "weighted_cross_entropy"},
        {"name": "weighted_cross_entropy", "class_weights": (0.5, 3.0), "label_smoothing": 0.1},
        {"name": "focal"},
        {"name": "focal", "gamma": 0.0},
        {"name": "focal", "gamma": 3.0, "alpha": 0.25},
    ],
    ids=str,
)
def test_every_loss_equals_its_formula(settings):
    loss = make_loss(config(**settings), LABELS)
    logits, targets = batch()
    assert loss(logits, targets).item() == pytest.approx(reference_loss(settings, logits, targets), rel=1e-5)
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    assert loss(logits, mixed).item() == pytest.approx(reference_loss(settings, logits, mixed), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_losses_of_parts_average_to_the_loss_and_gradients_are_finite(name, seed, scale):
    loss = make_loss(config(name=name), LABELS)
    logits, targets = batch(8, seed=seed)
    logits = (scale * logits).requires_grad_()
    batch_loss = loss(logits, targets)
    parts = torch.stack([loss(logits[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)]).mean()
    torch.testing.assert_close(batch_loss, parts)
    (gradient,) = torch.autograd.grad(batch_loss, logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), WeightedCrossEntropy((0.5, 3.0)), FocalLoss(alpha=0.25)], ids=str)
def test_labels_equal_their_one_hot_rows(loss):
    logits, shares = batch()
    torch.testing.assert_close(loss(logits, shares.argmax(dim=1)), loss(logits, shares), rtol=1e-6, atol=0)


def test_focal_loss_has_defaults():
    logits, shares = batch()
    loss = FocalLoss()(logits, shares.argmax(dim=1))
    assert loss.item() == pytest.approx(reference_loss({"name": "focal"}, logits, shares), rel=1e-5)


def test_alpha_is_the_weight_of_class_1():
    logits = torch.zeros(1, 2)
    loss = FocalLoss(alpha=0.8)
    losses = [loss(logits, torch.eye(2)[[c]]).item() for c in (0, 1)]
    assert losses[1] / losses[0] == pytest.approx(4.0, rel=1e-5)


def test_balanced_weights_have_mean_one_over_train():
    weights = balanced_weights(LABELS)
    assert np.mean([weights[label] for label in LABELS]) == pytest.approx(1.0)
    with pytest.raises(DataError, match="4 of class 0 and 0 of class 1"):
        balanced_weights((0, 0, 0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "gamma"),
        ({"name": "focal", "label_smoothing": 0.1}, "label_smoothing"),
        ({"name": "weighted_cross_entropy", "class_weights": (0.0, 1.0)}, "greater than 0"),
    ],
)
def test_a_setting_that_has_no_effect_or_is_out_of_range_is_rejected(settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)


@pytest.mark.parametrize(("short", "name"), [("ce", "cross_entropy"), ("weighted_ce", "weighted_cross_entropy")])
def test_short_names_are_the_same_losses(short, name):
    assert config(name=short) == config(name=name)

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.models.config import LossConfig
from streetvision.models.losses import LOSSES, balanced_weights, make_loss

LABELS = (0, 0, 0, 1)


def batch(n=64, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    return 4 * torch.randn(n, 2, generator=generator), torch.nn.functional.one_hot(labels, 2).float()


DEFAULTS = {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": "balanced", "gamma": 2.0, "alpha": None}


def slow(given, logits, targets):
    """Row by row in float64, from the formulas as the papers print them."""
    name, smoothing, weights, gamma, alpha = (DEFAULTS | given).values()
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
    "given",
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
def test_every_loss_is_its_formula(given):
    loss = make_loss(LossConfig(**given), LABELS)
    logits, targets = batch()
    assert loss(logits, targets).item() == pytest.approx(slow(given, logits, targets), rel=1e-5)
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    assert loss(logits, mixed).item() == pytest.approx(slow(given, logits, mixed), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@drawn(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_parts_average_to_the_whole_and_gradients_are_finite(name, seed, scale):
    loss = make_loss(LossConfig(name=name), LABELS)
    logits, targets = batch(8, seed=seed)
    logits = (scale * logits).requires_grad_()
    whole = loss(logits, targets)
    parts = torch.stack([loss(logits[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)]).mean()
    torch.testing.assert_close(whole, parts)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert torch.isfinite(gradient).all()


def test_alpha_weighs_the_classes_against_each_other():
    logits = torch.zeros(1, 2)
    loss = make_loss(LossConfig(name="focal", alpha=0.8), LABELS)
    of_class = [loss(logits, torch.eye(2)[[c]]).item() for c in (0, 1)]
    assert of_class[1] / of_class[0] == pytest.approx(4.0, rel=1e-5)


def test_balanced_weights_have_mean_one_over_train():
    weights = balanced_weights(LABELS)
    assert np.mean([weights[label] for label in LABELS]) == pytest.approx(1.0)
    with pytest.raises(DataError, match="4 and 0"):
        balanced_weights((0, 0, 0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "does not read gamma"),
        ({"name": "focal", "label_smoothing": 0.1}, "does not read label_smoothing"),
        ({"name": "weighted_cross_entropy", "class_weights": (0.0, 1.0)}, "class weights are positive"),
    ],
)
def test_a_wrong_loss_says_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings)

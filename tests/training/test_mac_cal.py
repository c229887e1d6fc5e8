import pytest
import torch
from torch import nn

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.models.config import LinearHeadConfig, MlpHeadConfig
from streetvision.models.module import make_head
from streetvision.training.config import MacCalConfig
from streetvision.training.mac_cal import evaluate_head, fit_mac_cal, masked_logits


def noisy(n, *, seed, width=32):
    """Four features predict the label, of which one in five is wrong, so a head becomes overconfident."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    features = torch.randn(n, width, generator=generator)
    features[:, :4] += 2.0 * labels[:, None]
    wrong = torch.rand(n, generator=generator) < 0.2
    return features, torch.where(wrong, 1 - labels, labels)


def fit(train=None, select=None, *, seed=0, **changes):
    torch.manual_seed(seed)
    head = make_head(LinearHeadConfig(), 32)
    config = MacCalConfig(**{"epochs": 15, "batch_size": 32, "learning_rate": 0.02, "seed": seed} | changes)
    pair = train or noisy(120, seed=1), select or noisy(400, seed=2)
    return head, fit_mac_cal(head, *pair, config=config, progress=Silent())


def test_masks_preserve_the_mean_of_the_logits():
    head = nn.Linear(50, 2, bias=False)
    features, generator = torch.ones(1, 50), torch.Generator().manual_seed(0)
    samples = torch.cat([masked_logits(head, features, 0.6, generator) for _ in range(4000)])
    with torch.no_grad():
        torch.testing.assert_close(samples.mean(0), head(features)[0], atol=0.03, rtol=0)
        expected = (head.weight**2).sum(1) * (1 - 0.6) / 0.6
        torch.testing.assert_close(samples.var(0), expected, rtol=0.15, atol=0)
        assert torch.equal(masked_logits(head, features, 1.0, generator), head(features))


def test_every_linear_layer_is_masked_and_gradients_reach_its_weights():
    head = make_head(MlpHeadConfig(hidden=8), 16)
    masked_logits(head, torch.randn(4, 16), 0.5, torch.Generator().manual_seed(0)).sum().backward()
    for layer in (m for m in head.modules() if isinstance(m, nn.Linear)):
        assert torch.isfinite(layer.weight.grad).all()
        assert (layer.weight.grad == 0).any(), "a weight that was masked got a gradient"


def test_masks_become_sparser_while_the_head_is_overconfident():
    _, result = fit(adaptation=1.0)
    for row, next_row in zip(result.history, result.history[1:], strict=False):
        gap = row["val_select_confidence"] - row["val_select_accuracy"]
        assert next_row["retention"] == pytest.approx(min(1.0, max(0.1, row["retention"] - gap)))
    assert result.history[-1]["retention"] < result.history[0]["retention"]


def test_the_epoch_with_the_lowest_nll_on_val_select_is_selected():
    head, result = fit()
    assert result.best_row["val_select_nll"] == min(row["val_select_nll"] for row in result.history)
    head.load_state_dict(result.best)
    assert evaluate_head(head, *noisy(400, seed=2))["val_select_nll"] == result.best_row["val_select_nll"]


def test_masks_lower_the_confidence_of_the_last_epoch():
    with_masks, without = (
        fit(adaptation=a, retention=r)[1].history[-1]["val_select_confidence"] for a, r in ((1.0, 0.5), (0.0, 1.0))
    )
    assert with_masks < without


def test_a_seed_gives_the_same_head():
    first, again, other = (fit(seed=seed)[1].best for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_is_not_finite_is_an_error():
    features, labels = noisy(64, seed=1)
    features[3] = torch.inf
    with pytest.raises(StreetVisionError, match="the loss is nan at epoch 1"):
        fit((features, labels))

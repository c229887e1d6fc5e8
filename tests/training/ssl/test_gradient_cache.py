import pytest
import torch
from torch import nn

from streetvision.training.ssl.gradient_cache import GradientCache
from streetvision.training.ssl.losses import SimCLRLoss


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8))


def views():
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(24, 6, generator=generator)
    return first, first + 0.1 * torch.randn(24, 6, generator=generator)


def cached_gradients(embed, views, loss, *, chunk_size):
    cache = GradientCache(embed, views, chunk_size=chunk_size)
    value = loss(*cache.embeddings)
    value.backward()
    cache.backward()
    return value.detach()


def gradients(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


def assert_equal_gradients(first, second):
    for gradient, expected in zip(gradients(first), gradients(second), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [5, 24, 100])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk_size):
    full, cached, loss = network(), network(), SimCLRLoss(0.1)
    expected = loss(*(full(view) for view in views()))
    expected.backward()
    value = cached_gradients(cached, views(), loss, chunk_size=chunk_size)
    torch.testing.assert_close(value, expected.detach())
    assert_equal_gradients(cached, full)


def test_accumulation_gives_another_gradient():
    """The purpose of the cache: each part of an accumulated batch has its own negatives only."""
    full, parts, loss = network(), network(), SimCLRLoss(0.1)
    loss(*(full(view) for view in views())).backward()
    for first, second in zip(*(view.split(6) for view in views()), strict=True):
        (loss(parts(first), parts(second)) / 4).backward()
    worst = max((a - b).abs().max() for a, b in zip(gradients(parts), gradients(full), strict=True))
    assert worst > 1e-3


def test_both_passes_draw_the_same_dropout():
    module, loss = network(dropout=0.5), SimCLRLoss(0.1)
    torch.manual_seed(5)
    cached_gradients(module, views(), loss, chunk_size=24)
    full = network(dropout=0.5)
    torch.manual_seed(5)
    first, second = (full(view) for view in views())
    loss(first, second).backward()
    assert_equal_gradients(module, full)


def test_gradients_accumulate_over_calls():
    module, loss = network(), SimCLRLoss(0.1)
    cached_gradients(module, views(), loss, chunk_size=8)
    once = gradients(module)
    cached_gradients(module, views(), loss, chunk_size=8)
    for single, twice in zip(once, gradients(module), strict=True):
        torch.testing.assert_close(twice, 2 * single)

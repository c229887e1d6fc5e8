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


@pytest.mark.parametrize("chunk_size", [5, 24, 100])
def test_parts_give_the_gradient_of_the_whole_batch(chunk_size):
    whole, parts, loss = network(), network(), SimCLRLoss(0.1)
    expected = loss(*(whole(view) for view in views()))
    expected.backward()
    found = cached_gradients(parts, views(), loss, chunk_size=chunk_size)
    torch.testing.assert_close(found, expected.detach())
    for one, other in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_accumulation_gives_another_gradient():
    """What the cache is for: each part of an accumulated batch sees its own negatives only."""
    whole, parts, loss = network(), network(), SimCLRLoss(0.1)
    loss(*(whole(view) for view in views())).backward()
    for first, second in zip(*(view.split(6) for view in views()), strict=True):
        (loss(parts(first), parts(second)) / 4).backward()
    worst = max((a - b).abs().max() for a, b in zip(gradients(parts), gradients(whole), strict=True))
    assert worst > 1e-3


def test_dropout_is_drawn_the_same_both_times():
    module, loss = network(dropout=0.5), SimCLRLoss(0.1)
    torch.manual_seed(5)
    cached_gradients(module, views(), loss, chunk_size=24)
    again = network(dropout=0.5)
    torch.manual_seed(5)
    first, second = (again(view) for view in views())
    loss(first, second).backward()
    for one, other in zip(gradients(module), gradients(again), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradients_add_up_as_backward_s_do():
    module, loss = network(), SimCLRLoss(0.1)
    cached_gradients(module, views(), loss, chunk_size=8)
    once = gradients(module)
    cached_gradients(module, views(), loss, chunk_size=8)
    for one, twice in zip(once, gradients(module), strict=True):
        torch.testing.assert_close(twice, 2 * one)

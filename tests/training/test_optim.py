import pytest
import torch

from streetvision.training.optim import ExponentialMovingAverage, cosine_with_warmup, make_adamw


def test_norms_and_biases_have_no_decay_and_frozen_weights_are_excluded():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    module[0].requires_grad_(False)
    groups = make_adamw(module, learning_rate=0.1, weight_decay=0.5).param_groups
    decay = {g["weight_decay"]: [tuple(p.shape) for p in g["params"]] for g in groups}
    assert decay == {0.5: [(2, 4)], 0.0: [(4,), (4,), (2,)]}


@pytest.mark.parametrize(("total", "warmup"), [(10, 3), (10, 0), (1, 0), (100, 10)])
def test_the_rate_rises_to_its_peak_once_and_falls_to_zero(total, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_with_warmup(optimizer, total_steps=total, warmup_steps=warmup)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(2.0)
    peak = rates.index(max(rates))
    assert peak == max(0, warmup - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert min(rates) > 0


def test_running_statistics_are_averaged_as_well():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    module[0].requires_grad_(False)
    average = ExponentialMovingAverage(module, 0.9, ramped=False)
    assert set(average.tensors) == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    module(torch.randn(8, 3))
    average.update(module)
    torch.testing.assert_close(average.tensors["1.running_mean"], 0.1 * module[1].running_mean)

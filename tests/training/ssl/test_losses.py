import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.contracts.errors import ConfigError
from streetvision.io.process_pool import worker_context
from streetvision.training.ssl.losses import (
    SimCLRLoss,
    alignment,
    byol_loss,
    effective_rank,
    group_prototype_loss,
    sinkhorn,
    swav_loss,
    uniformity,
)


def pairs(n, d=16, seed=0, near=0.5):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return first, first + near * torch.randn(n, d, generator=generator, dtype=torch.float64)


def reference(first, second, temperature):
    """NT-Xent by its formula, one anchor at a time, in float64."""
    z = np.concatenate([first.numpy(), second.numpy()])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, losses = len(first), []
    for anchor in range(2 * n):
        positive = (anchor + n) % (2 * n)
        terms = [math.exp(z[anchor] @ z[other] / temperature) for other in range(2 * n) if other != anchor]
        losses.append(-math.log(math.exp(z[anchor] @ z[positive] / temperature) / sum(terms)))
    return sum(losses) / len(losses)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 64), temperature=st.sampled_from([0.07, 0.1, 0.2, 1.0]), seed=st.integers(0, 99))
def test_simclr_equals_its_formula(n, temperature, seed):
    first, second = pairs(n, seed=seed)
    assert float(SimCLRLoss(temperature)(first, second)) == pytest.approx(
        reference(first, second, temperature), rel=1e-5
    )


@pytest.mark.parametrize("n", [32, 512])
def test_simclr_of_uninformative_embeddings_is_at_chance(n):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 4096, generator=generator) for _ in range(2))
    assert float(SimCLRLoss(1.0)(first, second)) == pytest.approx(math.log(2 * n - 1), abs=0.01)
    same = torch.ones(n, 8)
    assert float(SimCLRLoss(0.1)(same, same)) == pytest.approx(math.log(2 * n - 1), abs=1e-4)


def test_simclr_does_not_depend_on_order_scale_or_which_view_is_first():
    first, second = pairs(12)
    loss, order = SimCLRLoss(0.1), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = loss(first, second)
    torch.testing.assert_close(loss(first[order], second[order]), expected)
    torch.testing.assert_close(loss(second, first), expected)
    torch.testing.assert_close(loss(first * 7, second / 3), expected)
    assert loss(first, second[order]) > expected


def test_gradients_equal_finite_differences():
    first, second = (view.requires_grad_() for view in pairs(3, d=4))

    assert torch.autograd.gradcheck(SimCLRLoss(0.5), (first, second))


def reference_with_groups(first, second, group_ids, temperature):
    """As `reference`, without the terms of other images of the same group."""
    z = np.concatenate([first.numpy(), second.numpy()])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, losses = len(first), []
    for anchor in range(2 * n):
        positive = (anchor + n) % (2 * n)
        negatives = [other for other in range(2 * n) if group_ids[other % n] != group_ids[anchor % n]]
        terms = [math.exp(z[anchor] @ z[other] / temperature) for other in (positive, *negatives)]
        losses.append(math.log(sum(terms)) - z[anchor] @ z[positive] / temperature)
    return sum(losses) / len(losses)


class TestGroups:
    @settings(max_examples=25, deadline=None)
    @given(group_ids=st.lists(st.integers(0, 9), min_size=2, max_size=40), seed=st.integers(0, 99))
    def test_images_of_one_group_are_no_negatives(self, group_ids, seed):
        first, second = pairs(len(group_ids), seed=seed)
        loss = SimCLRLoss(0.2)(first, second, torch.tensor(group_ids))
        assert float(loss) == pytest.approx(reference_with_groups(first, second, group_ids, 0.2), rel=1e-5, abs=1e-9)

    def test_gradients_equal_finite_differences(self):
        first, second = (view.requires_grad_() for view in pairs(4, d=4))
        group_ids = torch.tensor([0, 1, 0, 2])
        assert torch.autograd.gradcheck(lambda *views: SimCLRLoss(0.5)(*views, group_ids), (first, second))

    def test_groups_of_one_image_give_the_loss_without_groups(self):
        first, second = pairs(9)
        torch.testing.assert_close(SimCLRLoss(0.1)(first, second, torch.arange(9)), SimCLRLoss(0.1)(first, second))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_an_invalid_temperature_is_an_error(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        SimCLRLoss(temperature)


def test_byol_is_0_for_the_same_direction_and_4_for_the_opposite():
    first, _ = pairs(5)
    assert float(byol_loss(first, 3 * first)) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(first, -first)) == pytest.approx(4, abs=1e-6)
    target = first.clone().requires_grad_()
    assert not byol_loss(target.detach().requires_grad_(), target).backward() and target.grad is None


class TestGroupPrototypes:
    def test_it_is_ln_of_the_number_of_groups_without_information_and_0_for_one_group(self):
        same, groups = torch.ones(12, 4), torch.arange(12) % 3
        assert float(group_prototype_loss(same, same, groups)) == pytest.approx(math.log(3))
        assert float(group_prototype_loss(*pairs(12), torch.zeros(12, dtype=torch.int64))) == pytest.approx(0)

    def test_views_find_the_mean_of_their_own_group(self):
        groups = torch.arange(12) % 3 * 10
        first = torch.eye(3)[torch.arange(12) % 3]
        assert group_prototype_loss(first, first, groups) < 1e-3 < group_prototype_loss(first, first.roll(1, 0), groups)

    def test_it_equals_a_cross_entropy_over_means(self):
        (first, second), groups = pairs(6), torch.tensor([0, 1, 0, 2, 2, 2])
        loss = group_prototype_loss(first, second, groups, temperature=0.5)

        def one_way(views, others):
            views, others = F.normalize(views), F.normalize(others)
            means = F.normalize(torch.stack([others[groups == group].mean(0) for group in range(3)]))
            return F.cross_entropy(views @ means.T / 0.5, groups)

        assert float(loss) == pytest.approx(float((one_way(first, second) + one_way(second, first)) / 2))


class TestSwav:
    def test_codes_are_even_over_prototypes_and_sum_to_one_over_them(self):
        scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2
        codes = sinkhorn(scores, rounds=60)
        torch.testing.assert_close(codes.sum(1), torch.ones(64, dtype=torch.float64))
        torch.testing.assert_close(codes.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3, atol=1e-3)

    def test_codes_follow_the_scores(self):
        scores = torch.eye(4).repeat(3, 1)
        assert torch.equal(sinkhorn(scores).argmax(1), scores.argmax(1))

    def test_codes_in_float32_equal_those_in_float64(self):
        scores = torch.rand(256, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        codes = sinkhorn(scores)
        assert codes.dtype == torch.float32
        torch.testing.assert_close(codes.double(), sinkhorn(scores.double()), rtol=1e-4, atol=1e-6)

    def test_the_codes_need_no_float64(self, monkeypatch):
        def unsupported(_):
            raise TypeError("the MPS framework doesn't support float64")

        monkeypatch.setattr(torch.Tensor, "double", unsupported, raising=False)
        assert torch.isfinite(sinkhorn(torch.randn(6, 4))).all()

    def test_codes_do_not_overflow(self):
        assert torch.isfinite(sinkhorn(torch.randn(6, 4).bfloat16() * 100)).all()

    def test_matching_views_have_a_lower_loss(self):
        first, second = pairs(32, near=0.1)
        prototypes = torch.randn(8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        assert swav_loss(first, second, prototypes) < swav_loss(first, second.roll(1, 0), prototypes)

    def test_only_sharp_codes_separate_embeddings_that_are_close_together(self):
        first, second = (
            9 + 0.3 * view for view in pairs(32, near=0.1)
        )  # cosines over 0.99, as those of an untrained projection
        prototypes = torch.randn(8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        sharp, soft = (
            [swav_loss(first, rows, prototypes, epsilon=epsilon) for rows in (second, second.roll(1, 0))]
            for epsilon in (0.001, 0.05)
        )
        assert sharp[1] - sharp[0] > 10 * (soft[1] - soft[0])

    def test_gradients_reach_views_and_prototypes(self):
        first, second = (view.requires_grad_() for view in pairs(8))
        prototypes = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
        swav_loss(first, second, prototypes).backward()
        for tensor in (first, second, prototypes):
            assert torch.isfinite(tensor.grad).all()
            assert tensor.grad.abs().sum() > 0


class TestCollapse:
    def test_effective_rank_counts_the_directions_in_use(self):
        generator = torch.Generator().manual_seed(0)
        assert effective_rank(torch.randn(4000, 12, generator=generator)) == pytest.approx(12, abs=0.1)
        assert (
            effective_rank(torch.randn(4000, 3, generator=generator) @ torch.randn(3, 12, generator=generator)) < 3.01
        )
        assert effective_rank(torch.ones(50, 12)) == 1
        assert effective_rank(torch.linspace(0, 1, 50)[:, None] * torch.ones(12)) == pytest.approx(1, abs=1e-6)

    def test_alignment_and_uniformity_of_known_points(self):
        first, _ = pairs(10)
        assert alignment(first, 2 * first) == pytest.approx(0, abs=1e-12)
        assert alignment(first, -first) == pytest.approx(4)
        assert uniformity(torch.ones(10, 3)) == pytest.approx(0)
        assert uniformity(torch.eye(2)) == pytest.approx(-4)

    def test_uniformity_of_many_rows_uses_a_subset(self):
        some = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
        assert uniformity(some.repeat_interleave(7, dim=0)) == pytest.approx(uniformity(some), abs=1e-9)


def simclr(first, second):
    return SimCLRLoss(0.2)(first, second)


def swav(first, second):
    return swav_loss(first, second, torch.randn(5, 8, generator=torch.Generator().manual_seed(2)))


def group(first, second):
    """Images of a group are in both processes; the groups of a process follow from its rows."""
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    return group_prototype_loss(first, second, ids if len(first) == 6 else ids.repeat(2))


def loss_and_gradient(objective, rows=slice(None)):
    """The loss of a layer on some rows of the shared views, and the gradient of its weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 8)
    loss = objective(*(layer(view[rows].float()) for view in pairs(12)))
    loss.backward()
    return loss.detach(), layer.weight.grad


def _in_process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for objective in (simclr, swav, group):
        results[objective.__name__] = loss_and_gradient(objective, slice(6 * rank, 6 * rank + 6))
        for tensor in results[objective.__name__]:
            torch.distributed.all_reduce(tensor)
            tensor /= 2
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.spec(81)
def test_two_processes_equal_one_with_the_joint_batch(tmp_path):
    worker_context(["streetvision.training.ssl.losses"])  # so that the processes need not import torch
    mp.start_processes(_in_process, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in (0, 1):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for objective in (simclr, swav, group):
            torch.testing.assert_close(results[objective.__name__], loss_and_gradient(objective), rtol=1e-5, atol=1e-6)

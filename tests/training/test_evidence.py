"""Evidence of tiles: every pooling on planted data, log-sum-exp against a slow float64 reference, and limits."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm

from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.models.config import GatedAttentionConfig, LseConfig, TopKConfig
from streetvision.models.evidence import EVIDENCE
from streetvision.training import evidence
from streetvision.training.evidence import fit_evidence

TILES, WIDTH = 6, 8
POOLINGS = {"lse": LseConfig(), "top_k": TopKConfig(k=2), "gated_attention": GatedAttentionConfig(hidden=4)}


def planted(n, *, seed, shift):
    """Tiles of which one in each positive image has shifted features; the base margins know nothing of it."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = random.normal(size=(n, TILES, WIDTH))
    features[np.arange(n), random.integers(TILES, size=n), :3] += shift * labels[:, None]
    mask = random.random((n, TILES)) < 0.9
    tensors = torch.from_numpy(features).float(), torch.from_numpy(mask)
    return *tensors, labels, random.normal(scale=0.3, size=n)


def fit(features, mask, labels, base, groups=None, seed=0, pooling=POOLINGS["lse"]):
    rows = range(len(labels)) if groups is None else groups
    return fit_evidence(features, mask, labels, base, rows, pooling=pooling, seed=seed, progress=Silent())


def module_of(fitted, pooling=POOLINGS["lse"]):
    module = EVIDENCE[pooling.name](pooling, TILES, WIDTH)
    module.load_state_dict(fitted.state)
    return module.double()


def fused_margins(module, features, mask, base):
    """Margins (N,) by the module that ships."""
    return torch.from_numpy(base) + module(features.double(), mask).margin


def test_the_poolings_are_those_of_the_table():
    assert sorted(POOLINGS) == sorted(EVIDENCE)


@pytest.mark.parametrize("name", EVIDENCE)
def test_one_shifted_tile_of_an_image_is_learned_from_the_labels_of_images(name):
    pooling = POOLINGS[name]
    fitted = fit(*planted(300, seed=1, shift=2.5), pooling=pooling)
    assert min(fitted.path) < 0.85 * fitted.base_nll
    features, mask, labels, base = planted(300, seed=2, shift=2.5)
    with torch.no_grad():
        margins = fused_margins(module_of(fitted, pooling), features, mask, base).numpy()
    assert ((margins > 0) == labels).mean() > 0.75


def test_the_solution_is_that_of_a_float64_reference(monkeypatch):
    features, mask, labels, base = planted(120, seed=3, shift=1.5)
    mask[:2] = False  # no tile: the base margin stays
    monkeypatch.setattr(evidence, "PENALTIES", (0.1,))
    fitted = fit(features, mask, labels, base)
    scale = layer_norm(features[mask].double(), (WIDTH,)).std(dim=0)

    module = module_of(fitted)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        margins = fused_margins(module, features, mask, base)
        loss = binary_cross_entropy_with_logits(margins, torch.from_numpy(labels).double())
        loss = loss + 0.1 * (module.weight * scale).square().sum()  # the penalty is on standardised features
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert before == pytest.approx(closure().item(), abs=1e-5)
    np.testing.assert_allclose(module.weight.detach().numpy(), fitted.state["weight"], atol=5e-3)


def test_tiles_without_a_signal_change_little():
    fitted = fit(*planted(200, seed=4, shift=0.0))
    assert min(fitted.path) > 0.99 * fitted.base_nll
    assert fitted.state["weight"].abs().max() < 0.1


@pytest.mark.parametrize("name", EVIDENCE)
def test_the_same_seed_gives_the_same_bits(name, monkeypatch):
    monkeypatch.setattr(evidence, "PENALTIES", (0.1,))
    monkeypatch.setattr(evidence, "FINAL_ITERATIONS", 20)
    first, second = (fit(*planted(60, seed=5, shift=1.0), pooling=POOLINGS[name]).state for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_signal_of_one_group_is_not_learned():
    features, mask, labels, base = planted(160, seed=6, shift=0.0)
    labels[:40] = 1
    features[:40, :, 0] += 5  # only one group has it
    groups = ["marked"] * 40 + list(range(120))
    fitted = fit(features, mask, labels, base, groups)
    assert min(fitted.path) > 0.9 * fitted.base_nll


def test_a_class_of_one_group_is_an_error():
    features, mask, labels, base = planted(40, seed=7, shift=1.0)
    with pytest.raises(DataError):
        fit(features, mask, labels, base, groups=["positive" if label else row for row, label in enumerate(labels)])

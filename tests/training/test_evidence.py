"""Evidence of tiles: every pooling on planted data, log-sum-exp against a slow float64 reference, and limits."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm

from streetvision.calibration.parametric import PlattCalibrator
from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Silent
from streetvision.eval.metrics import roc_auc
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


def with_informed_base(n, *, seed, scale):
    """As `planted`; the base margins are the log-odds of a single view, times `scale`."""
    features, mask, labels, _ = planted(n, seed=seed, shift=1.5)
    view = np.random.default_rng(seed + 100).normal(size=n) + 1.5 * (labels - 0.5)
    return features, mask, labels, scale * 1.5 * view


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
    features, mask, labels, base = with_informed_base(120, seed=3, scale=2.0)
    mask[:2] = False  # no tile: the base margin stays
    monkeypatch.setattr(evidence, "PENALTIES", (0.1,))
    fitted = fit(features, mask, labels, base)
    scale = layer_norm(features[mask].double(), (WIDTH,)).std(dim=0)
    platt = PlattCalibrator().learn(base, labels == 1)

    module = module_of(fitted)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        margins = platt.slope * fused_margins(module, features, mask, base) + platt.intercept
        loss = binary_cross_entropy_with_logits(margins, torch.from_numpy(labels).double())
        loss = (
            loss + 0.1 * (platt.slope * module.weight * scale).square().sum()
        )  # the penalty is on standardized features
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert before == pytest.approx(closure().item(), abs=1e-5)
    np.testing.assert_allclose(module.weight.detach().numpy(), fitted.state["weight"], atol=5e-3)


def auc_of_fit(*, scale):
    """ROC-AUC of the base and of the fused margins on new images, and the fit."""
    fitted = fit(*with_informed_base(300, seed=1, scale=scale))
    features, mask, labels, base = with_informed_base(2000, seed=51, scale=scale)
    with torch.no_grad():
        fused = fused_margins(module_of(fitted), features, mask, base).numpy()
    return roc_auc(labels, expit(base / scale)), roc_auc(labels, expit(fused / scale)), fitted


def test_an_overconfident_single_view_does_not_suppress_the_evidence():
    base, calibrated, of_calibrated = auc_of_fit(scale=1.0)
    _, overconfident, of_overconfident = auc_of_fit(scale=5.0)
    assert calibrated > base + 0.02
    assert overconfident > base + 0.02
    assert overconfident == pytest.approx(calibrated, abs=0.005)
    assert of_overconfident.base_nll == pytest.approx(of_calibrated.base_nll, abs=1e-3)
    assert min(of_overconfident.path) < 0.95 * of_overconfident.base_nll


def test_the_calibration_changes_little_if_the_single_view_is_calibrated(monkeypatch):
    _, auc, fitted = auc_of_fit(scale=1.0)
    monkeypatch.setattr(evidence, "_platt", lambda *_: evidence.Calibration(1.0, 0.0))
    _, without, fitted_without = auc_of_fit(scale=1.0)
    assert auc == pytest.approx(without, abs=0.003)
    assert min(fitted.path) == pytest.approx(min(fitted_without.path), abs=0.01)


def test_a_fold_is_calibrated_without_its_rows(monkeypatch):
    features, mask, labels, base = with_informed_base(100, seed=8, scale=5.0)
    groups, calibrated, platt = list(range(50)) * 2, [], evidence._platt

    def recorded(margins, of_rows):
        calibrated.append(np.flatnonzero(np.isin(base, margins)))
        return platt(margins, of_rows)

    monkeypatch.setattr(evidence, "_platt", recorded)
    monkeypatch.setattr(evidence, "PENALTIES", (1.0,))
    fit(features, mask, labels, base, groups)
    folds = evidence.grouped_folds(labels, groups, seed=0)
    expected = [*(np.flatnonzero(folds != fold) for fold in range(folds.max() + 1)), np.arange(100)]
    assert [rows.tolist() for rows in calibrated] == [rows.tolist() for rows in expected]


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

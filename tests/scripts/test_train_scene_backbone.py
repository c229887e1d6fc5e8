import pytest
import torch

from scripts.train_scene_backbone import Recipe, augment, draw_one, make_backbone, patch_loss
from streetvision.contracts.progress import Silent
from streetvision.models.backbone import BackboneConfig, load_backbone

TINY = Recipe(scenes=32, epochs=1, batch_size=16, image_size=32, width=16, depth=1, heads=2, patch_size=8, held_out=32)


@pytest.mark.slow
def test_the_written_backbone_can_be_loaded(tmp_path):
    card = make_backbone(tmp_path, TINY, Silent())
    assert "MCC" in card
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))
    assert (backbone.spec.embed_dim, backbone.spec.image_size) == (16, (32, 32))


def test_patch_coverage_matches_the_label():
    scenes = [draw_one(seed, size=64, grid=8) for seed in range(12)]
    assert {label for _, _, label in scenes} == {0, 1}
    for image, coverage, label in scenes:
        assert image.shape == (3, 64, 64)
        assert bool(coverage.sum() > 0) == bool(label)


def test_patches_with_partial_coverage_are_ignored():
    coverage = torch.tensor([[0.0, 0.05, 0.5]])
    base = patch_loss(torch.tensor([[0.0, 0.0, 0.0]]), coverage)
    assert patch_loss(torch.tensor([[0.0, 9.0, 0.0]]), coverage) == base
    assert patch_loss(torch.tensor([[9.0, 0.0, 0.0]]), coverage) > base
    assert patch_loss(torch.tensor([[0.0, 0.0, 9.0]]), coverage) < base


def test_augmentation_moves_image_and_coverage_together():
    torch.manual_seed(0)
    images, coverage = torch.zeros(64, 3, 32, 32), torch.zeros(64, 4, 4)
    images[:, :, 8:16, 0:16] = 255.0
    coverage[:, 1, 0:2] = 1.0
    moved, moved_coverage = augment(images, coverage)
    bright = torch.nn.functional.adaptive_avg_pool2d(moved.mean(1, keepdim=True), 4)[:, 0]
    for brightness, patches in zip(bright, moved_coverage, strict=True):
        assert torch.corrcoef(torch.stack([brightness.flatten(), patches.flatten()]))[0, 1] > 0.8

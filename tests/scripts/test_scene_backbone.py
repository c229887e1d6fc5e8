import torch

from scripts.scene_backbone import Recipe, augment, draw_one, make_backbone, patch_loss
from streetvision.contracts.progress import Silent
from streetvision.models.backbone import BackboneConfig, load_backbone

TINY = Recipe(scenes=32, epochs=1, batch_size=16, image_size=32, width=16, depth=1, heads=2, patch_size=8, held_out=32)


def test_what_it_writes_is_a_backbone_that_loads(tmp_path):
    card = make_backbone(tmp_path, TINY, Silent())
    assert "MCC" in card
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))
    assert (backbone.spec.embed_dim, backbone.spec.image_size) == (16, 32)


def test_patches_know_where_the_roadwork_is():
    drawn = [draw_one(seed, size=64, grid=8) for seed in range(12)]
    assert {label for _, _, label in drawn} == {0, 1}
    for image, shares, label in drawn:
        assert image.shape == (3, 64, 64)
        assert bool(shares.sum() > 0) == bool(label)


def test_patches_between_clear_and_none_are_not_judged():
    shares = torch.tensor([[0.0, 0.05, 0.5]])
    base = patch_loss(torch.tensor([[0.0, 0.0, 0.0]]), shares)
    assert patch_loss(torch.tensor([[0.0, 9.0, 0.0]]), shares) == base
    assert patch_loss(torch.tensor([[9.0, 0.0, 0.0]]), shares) > base
    assert patch_loss(torch.tensor([[0.0, 0.0, 9.0]]), shares) < base


def test_augmentation_moves_picture_and_patches_together():
    torch.manual_seed(0)
    images, shares = torch.zeros(64, 3, 32, 32), torch.zeros(64, 4, 4)
    images[:, :, 8:16, 0:16] = 255.0
    shares[:, 1, 0:2] = 1.0
    moved, moved_shares = augment(images, shares)
    bright = torch.nn.functional.adaptive_avg_pool2d(moved.mean(1, keepdim=True), 4)[:, 0]
    for picture, share in zip(bright, moved_shares, strict=True):
        assert torch.corrcoef(torch.stack([picture.flatten(), share.flatten()]))[0, 1] > 0.8

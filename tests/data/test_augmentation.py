import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ConfigError
from streetvision.data.augmentation import get_batch_transform, get_train_transforms, get_val_transforms
from streetvision.data.config import PLAIN, AugmentationConfig, AugMixConfig, PairConfig, TrivialAugmentWideConfig

IMAGE = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented(config, *, seed=1):
    torch.manual_seed(seed)
    return get_train_transforms(config, image_size=32)(IMAGE)


def test_without_augmentation_the_training_transform_is_that_of_evaluation():
    assert torch.equal(augmented(PLAIN), get_val_transforms(image_size=32)(IMAGE))
    assert get_batch_transform(PLAIN, image_size=(32, 32), patch_size=16) is None


@pytest.mark.parametrize(
    "change",
    [
        {"crop_scale": (0.3, 0.5)},
        {"flip_probability": 1.0},
        {"color_jitter": 0.9},
        {"trivial_augment_wide": TrivialAugmentWideConfig(enabled=True)},
        {"aug_mix": AugMixConfig(enabled=True)},
        {"erasing_probability": 1.0},
        {"validator_distortion_p": 1.0},
    ],
    ids=str,
)
def test_every_setting_of_the_augmentation_changes_the_image(change):
    changed = [augmented(PLAIN.model_copy(update=change), seed=seed) for seed in range(6)]
    assert all(image.shape == (3, 32, 32) and image.dtype == torch.uint8 for image in changed)
    assert any(not torch.equal(image, augmented(PLAIN, seed=seed)) for seed, image in enumerate(changed))


@pytest.mark.parametrize("low", [0.3, 0.7, 0.9])
def test_a_crop_keeps_the_configured_share_of_the_area(low):
    """Row and column of a pixel are its colors, so the crop can be read from the result."""
    row, column = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([row, column, row]).to(torch.uint8)
    transform = get_train_transforms(PLAIN.model_copy(update={"crop_scale": (low, 1.0)}), image_size=100)
    torch.manual_seed(0)
    extents = [(crop.amax(dim=(1, 2)) - crop.amin(dim=(1, 2)) + 1) / 200 for crop in map(transform, [image] * 300)]
    areas = torch.stack([extent[0] * extent[1] for extent in extents])
    assert low - 0.03 < areas.min() < low + 0.03


@pytest.mark.parametrize(
    ("section", "change"),
    [
        (TrivialAugmentWideConfig(enabled=True), {"num_magnitude_bins": 4}),
        (AugMixConfig(enabled=True), {"severity": 9}),
        (AugMixConfig(enabled=True), {"mixture_width": 1}),
        (AugMixConfig(enabled=True), {"alpha": 0.1}),
    ],
    ids=str,
)
def test_settings_of_a_policy_change_the_image(section, change):
    name = "aug_mix" if isinstance(section, AugMixConfig) else "trivial_augment_wide"
    first, second = (PLAIN.model_copy(update={name: s}) for s in (section, section.model_copy(update=change)))
    assert any(not torch.equal(augmented(first, seed=seed), augmented(second, seed=seed)) for seed in range(12))


def test_both_policies_can_be_combined():
    policies = {"trivial_augment_wide": TrivialAugmentWideConfig(enabled=True), "aug_mix": AugMixConfig(enabled=True)}
    both, one = (PLAIN.model_copy(update=dict(list(policies.items())[:n])) for n in (2, 1))
    assert any(not torch.equal(augmented(both, seed=seed), augmented(one, seed=seed)) for seed in range(6))


def test_the_levels_of_the_validator_are_applied():
    first, second = (
        augmented(PLAIN.model_copy(update={"validator_distortion_p": 1.0, "validator_levels": (n,)})) for n in (0, 3)
    )
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    evaluated = [get_val_transforms(image_size=32, validator_level=n)(IMAGE) for n in (0, 1)]
    assert not torch.equal(*evaluated)


def test_half_of_the_images_get_the_distortions_of_the_validator():
    transform = get_train_transforms(PLAIN.model_copy(update={"validator_distortion_p": 0.5}), image_size=16)
    plain = get_val_transforms(image_size=16)(IMAGE)
    torch.manual_seed(0)
    share = sum(torch.equal(transform(IMAGE), plain) for _ in range(60)) / 60
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("change", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}], ids=str)
def test_mixed_batches_have_mixed_labels(change):
    images = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 200)])
    torch.manual_seed(0)
    mixed, shares = get_batch_transform(PLAIN.model_copy(update=change), image_size=(32, 32), patch_size=16)(
        images, torch.tensor([0, 1])
    )
    assert mixed.dtype == torch.uint8
    assert shares.shape == (2, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    share_of_bright = mixed.float().mean(dim=(1, 2, 3)) / 200
    torch.testing.assert_close(share_of_bright, shares[:, 1], rtol=0, atol=0.02)


def test_a_batch_has_one_size_of_whole_patches():
    transform = get_batch_transform(
        PLAIN.model_copy(update={"scales": (0.5, 1.0, 1.3)}), image_size=(64, 64), patch_size=16
    )
    images, labels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.tensor([0, 1])
    torch.manual_seed(0)
    assert {transform(images, labels)[0].shape[-1] for _ in range(30)} == {32, 64, 80}


@pytest.mark.parametrize(
    "settings",
    [
        {"validator_levels": (3,)},
        {"scales": ()},
        {"scales": (0.0, 1.0)},
        {"validator_distortion_p": 0.5, "validator_levels": ()},
        {"gate_runs": 3},
        {"trivial_augment_wide": TrivialAugmentWideConfig(num_magnitude_bins=4)},
        {"aug_mix": AugMixConfig(severity=1)},
    ],
    ids=str,
)
def test_settings_without_effect_are_rejected(settings):
    with pytest.raises(ConfigError):
        AugmentationConfig(**settings)


@pytest.mark.parametrize("share", [(1.0, 0.7), (70, 100), (-1, 1), (0, 1)], ids=str)
def test_an_impossible_share_of_the_area_is_rejected(share):
    for config in (AugmentationConfig, PairConfig):
        with pytest.raises(ValidationError):
            config(crop_scale=share)

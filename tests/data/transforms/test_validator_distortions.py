import io

import numpy as np
import pytest
import torch
from PIL import Image

from streetvision.contracts.errors import ConfigError
from streetvision.data.transforms import validator_distortions as distortions
from streetvision.data.transforms.validator_distortions import (
    PROFILES,
    STRENGTHS,
    chroma_noise,
    distort,
    jpeg_round_trip,
)

SCENE = torch.randint(0, 256, (3, 90, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("level", STRENGTHS)
def test_every_level_gives_a_square_that_depends_on_the_seed(level):
    def sent(seed):
        torch.manual_seed(seed)
        return distort(SCENE, level)

    assert sent(0).shape == (3, 224, 224)
    assert sent(0).dtype == torch.uint8
    assert torch.equal(sent(0), sent(0))
    assert torch.equal(sent(0), sent(1)) is (level == 0)


def test_level_0_is_the_center_of_the_image():
    halves = torch.zeros(3, 100, 300, dtype=torch.uint8)
    halves[:, :, 100:200] = 200
    assert (distort(halves, 0).int() - 200).abs().max() <= 1


def test_a_rotated_image_has_black_corners_and_keeps_its_pixels():
    """Outside of crops, only the corners of a white image become black."""
    torch.manual_seed(3)
    challenge = torch.stack([distort(torch.full((3, 64, 64), 255, dtype=torch.uint8), 1) for _ in range(20)])
    assert (challenge == 255).float().mean() > 0.6
    assert (challenge < 5).any()


@pytest.mark.slow
def test_each_distortion_of_level_2_is_applied_in_half_of_the_cases(monkeypatch):
    counts = dict.fromkeys(STRENGTHS[2], 0)

    def counted(name):
        def step(image, strength):
            counts[name] += 1
            return image

        return step

    monkeypatch.setattr(distortions, "DISTORTIONS", {name: counted(name) for name in counts})
    torch.manual_seed(0)
    for _ in range(400):
        distort(SCENE[:, :8, :8], 2)
    assert all(150 < count < 250 for count in counts.values()), counts


def test_level_3_adds_noise_and_blur_to_level_2():
    assert set(STRENGTHS[3]) - set(STRENGTHS[2]) == {"chroma_noise", "blur"}
    assert STRENGTHS[3]["downsample"] == (None, 2, 3)


def test_chroma_noise_has_its_variance_and_does_not_change_brightness():
    torch.manual_seed(0)
    gray = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    noisy = chroma_noise(gray, 0.002).double() / 255
    luma = 0.299 * noisy[0] + 0.587 * noisy[1] + 0.114 * noisy[2]
    assert luma.std() < 1 / 255
    for channel, factor in ((0, 1.402), (2, 1.772)):
        chroma = (noisy[channel] - luma) / factor
        assert chroma.var().item() == pytest.approx(0.002, rel=0.1)


def test_the_jpeg_is_that_of_pillow_at_quality_75():
    written = io.BytesIO()
    Image.fromarray(SCENE.permute(1, 2, 0).numpy()).save(written, "JPEG", quality=75)  # 4:2:0 is Pillow's default
    expected = np.asarray(Image.open(written).convert("RGB"))
    assert np.array_equal(jpeg_round_trip(SCENE).permute(1, 2, 0).numpy(), expected)


def test_an_unknown_level_is_rejected():
    with pytest.raises(ConfigError, match="'4'"):
        distort(SCENE, 4)


def test_april_puts_the_whole_image_between_black_bars():
    white = torch.full((3, 90, 160), 255, dtype=torch.uint8)
    for image, bars in ((white, (slice(0, 45), slice(None))), (white.transpose(1, 2), (slice(None), slice(0, 45)))):
        challenge = distort(image, 0, "apr2026")
        assert challenge.shape == (3, 224, 224)
        assert (challenge > 250).float().mean() == pytest.approx(90 / 160, abs=0.02)
        assert challenge[:, *bars].max() < 10


@pytest.mark.parametrize("level", STRENGTHS)
def test_april_depends_on_the_seed_and_keeps_the_distortions(level):
    def sent(seed):
        torch.manual_seed(seed)
        return distort(SCENE, level, "apr2026")

    assert torch.equal(sent(0), sent(0))
    assert torch.equal(sent(0), sent(1)) is (level == 0)


def test_may_sends_the_unchanged_image():
    assert torch.equal(distort(SCENE, 0, "may2026"), jpeg_round_trip(SCENE))
    assert PROFILES["may2026"].levels == (0,)


def test_an_unknown_profile_or_a_level_it_lacks_lists_the_choices():
    with pytest.raises(ConfigError, match="'may2025'; did you mean 'may2026'"):
        distort(SCENE, 0, "may2025")
    with pytest.raises(ConfigError, match=r"choose one of: 0$"):
        distort(SCENE, 1, "may2026")

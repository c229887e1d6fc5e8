import pytest
import torch
from torchvision.transforms.v2 import functional as F

from streetvision.data.transforms.color import LUMA, ColorJitter, adjust_colors

SAME = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def picture(low=60, high=180, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (3, 24, 31), generator=generator, dtype=torch.uint8)


def max_difference(first, second):
    return int((first.int() - second.int()).abs().max())


def test_factors_of_one_change_nothing():
    assert max_difference(adjust_colors(picture(0, 256), **SAME), picture(0, 256)) == 0


@pytest.mark.parametrize(
    ("name", "peer"),
    [("brightness", F.adjust_brightness), ("contrast", F.adjust_contrast), ("saturation", F.adjust_saturation)],
)
@pytest.mark.parametrize("factor", [0.7, 0.9, 1.2])
def test_each_factor_equals_torchvision_up_to_one_level(name, peer, factor):
    assert max_difference(adjust_colors(picture(), **SAME | {name: factor}), peer(picture(), factor)) <= 1


@pytest.mark.parametrize("hue", [0.02, -0.05])
def test_hue_rotates_in_the_direction_of_torchvision_and_as_far(hue):
    """Not pixel by pixel: torchvision moves along the color cube, this function on a circle around gray."""
    image = picture()
    ours, theirs = (
        (changed.float() - image.float()).flatten()
        for changed in (adjust_colors(image, **SAME | {"hue": hue}), F.adjust_hue(image, hue))
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.6
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.1)


def test_hue_does_not_change_gray():
    image = picture()
    rotated = adjust_colors(image, **SAME | {"hue": 0.02})
    luma = torch.tensor(LUMA)[:, None, None]
    assert float(((rotated.float() - image.float()) * luma).sum(dim=0).abs().max()) <= 1
    gray = image[:1].expand(3, -1, -1)
    assert max_difference(adjust_colors(gray, **SAME | {"hue": 0.3}), gray) <= 1
    there_and_back = adjust_colors(adjust_colors(image, **SAME | {"hue": 0.1}), **SAME | {"hue": -0.1})
    assert max_difference(there_and_back, image) <= 3


def test_values_out_of_range_are_clipped():
    bright = adjust_colors(picture(200, 256), **SAME | {"brightness": 3.0})
    assert (int(bright.min()), int(bright.max())) == (255, 255)
    dark = adjust_colors(picture(0, 40), **SAME | {"contrast": 9.0})
    assert (int(dark.min()), int(dark.max())) == (0, 255) or int(dark.min()) == 0


def test_the_jitter_is_random_within_its_bounds():
    torch.manual_seed(0)
    draws = [ColorJitter(0.2, hue=0.02)(picture()) for _ in range(20)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 20
    means = [float(draw.float().mean()) / float(picture().float().mean()) for draw in draws]
    assert min(means) > 0.75
    assert max(means) < 1.25
    assert max_difference(ColorJitter(0.0, hue=0.0)(picture()), picture()) == 0

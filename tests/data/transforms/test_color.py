import pytest
import torch
from torchvision.transforms.v2 import functional as F

from streetvision.data.transforms.color import LUMA, ColorJitter, adjust_colors

SAME = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}


def picture(low=60, high=180, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (3, 24, 31), generator=generator, dtype=torch.uint8)


def worst(one, other):
    return int((one.int() - other.int()).abs().max())


def test_factors_of_one_change_nothing():
    assert worst(adjust_colors(picture(0, 256), **SAME), picture(0, 256)) == 0


@pytest.mark.parametrize(
    ("name", "peer"),
    [("brightness", F.adjust_brightness), ("contrast", F.adjust_contrast), ("saturation", F.adjust_saturation)],
)
@pytest.mark.parametrize("factor", [0.7, 0.9, 1.2])
def test_each_factor_is_torchvisions_to_a_grey_level(name, peer, factor):
    assert worst(adjust_colors(picture(), **SAME | {name: factor}), peer(picture(), factor)) <= 1


@pytest.mark.parametrize("turn", [0.02, -0.05])
def test_hue_turns_the_way_of_torchvisions_and_as_far(turn):
    """Not to the pixel: that one moves along the edges of the colour cube, this one on a circle around grey."""
    image = picture()
    ours, theirs = (
        (changed.float() - image.float()).flatten()
        for changed in (adjust_colors(image, **SAME | {"turn": turn}), F.adjust_hue(image, turn))
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.6
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.1)


def test_hue_leaves_grey_alone():
    image = picture()
    turned = adjust_colors(image, **SAME | {"turn": 0.02})
    luma = torch.tensor(LUMA)[:, None, None]
    assert float(((turned.float() - image.float()) * luma).sum(dim=0).abs().max()) <= 1
    grey = image[:1].expand(3, -1, -1)
    assert worst(adjust_colors(grey, **SAME | {"turn": 0.3}), grey) <= 1
    there_and_back = adjust_colors(adjust_colors(image, **SAME | {"turn": 0.1}), **SAME | {"turn": -0.1})
    assert worst(there_and_back, image) <= 3


def test_what_leaves_the_range_is_clipped():
    bright = adjust_colors(picture(200, 256), **SAME | {"brightness": 3.0})
    assert (int(bright.min()), int(bright.max())) == (255, 255)
    dark = adjust_colors(picture(0, 40), **SAME | {"contrast": 9.0})
    assert (int(dark.min()), int(dark.max())) == (0, 255) or int(dark.min()) == 0


def test_the_jitter_draws_within_its_bounds_and_each_time_anew():
    torch.manual_seed(0)
    draws = [ColorJitter(0.2, hue=0.02)(picture()) for _ in range(20)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 20
    means = [float(draw.float().mean()) / float(picture().float().mean()) for draw in draws]
    assert min(means) > 0.75
    assert max(means) < 1.25
    assert worst(ColorJitter(0.0, hue=0.0)(picture()), picture()) == 0

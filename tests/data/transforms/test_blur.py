import pytest
import torch
from torchvision.transforms.v2 import functional

from streetvision.data.transforms.blur import RandomBlur, blur

IMAGE = torch.randint(0, 256, (3, 37, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0, 5.0])
@pytest.mark.parametrize("radius", [1, 4, 11])
def test_it_equals_torchvision(radius, sigma):
    """Up to one level, because of rounding."""
    side = 2 * radius + 1
    theirs = functional.gaussian_blur(IMAGE, [side, side], [sigma, sigma])
    assert (blur(IMAGE, radius=radius, sigma=sigma).int() - theirs.int()).abs().max() <= 1


def test_a_uniform_image_does_not_change():
    assert (blur(torch.full((3, 9, 14), 200, dtype=torch.uint8), radius=8, sigma=3.0) == 200).all()


def test_white_does_not_overflow():
    assert (blur(torch.full((3, 24, 24), 255, dtype=torch.uint8), radius=2, sigma=1.7) == 255).all()


def test_sigma_is_drawn_within_its_bounds():
    draw = RandomBlur(4, (0.1, 2.0))
    torch.manual_seed(0)
    drawn = [draw(IMAGE) for _ in range(8)]
    torch.manual_seed(0)
    again = [draw(IMAGE) for _ in range(8)]
    assert all(torch.equal(first, second) for first, second in zip(drawn, again, strict=True))
    assert len({float(image.float().std()) for image in drawn}) == 8
    sharpest, softest = (float(blur(IMAGE, radius=4, sigma=sigma).float().std()) for sigma in (0.1, 2.0))
    assert all(softest <= float(image.float().std()) <= sharpest for image in drawn)

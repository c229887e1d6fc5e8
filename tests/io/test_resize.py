"""Images fitted into the model's input: geometry, pixels, padding of extreme aspect ratios."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streetvision.io.resize import MAX_STRETCH, as_size, fit_box, fit_pixels
from streetvision.io.resize_tensor import fit_tensor

SIDES = st.integers(1, 3000)
INPUT = (32, 48)


def aspect(size):
    return size[1] / size[0]


def both(image, size):
    """The image (H, W, 3) as Pillow and as torchvision fit it."""
    return fit_pixels(image, size), fit_tensor(torch.from_numpy(image).permute(2, 0, 1), size).numpy()


def test_a_number_is_the_side_of_a_square():
    assert as_size(5) == (5, 5)
    assert as_size((5, 7)) == (5, 7)


@given(SIDES, SIDES, st.tuples(st.integers(16, 600), st.integers(16, 600)))
def test_an_image_fills_the_input_or_is_centered_in_it(height, width, size):
    box = fit_box((height, width), size)
    assert 0 <= box.left < box.right <= size[1]
    assert 0 <= box.top < box.bottom <= size[0]
    assert size[0] == box.size[0] or size[1] == box.size[1], "one side is filled"
    assert abs(box.left - (size[1] - box.right)) <= 1
    assert abs(box.top - (size[0] - box.bottom)) <= 1
    if 1 / MAX_STRETCH <= aspect((height, width)) / aspect(size) <= MAX_STRETCH:
        assert box.size == size, "no padding"


@given(st.integers(100, 3000), st.integers(100, 3000))
def test_the_aspect_ratio_changes_by_a_bounded_factor(height, width):
    box = fit_box((height, width), (480, 640))
    factor = aspect(box.size) / aspect((height, width))
    assert 1 / MAX_STRETCH * 0.98 <= factor <= MAX_STRETCH * 1.02


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1)])
def test_an_image_of_one_row_is_padded_and_not_lost(shape):
    image = np.full((*shape, 3), 200, dtype=np.uint8)
    for fitted in both(image, INPUT):
        assert fitted.shape == (3, *INPUT)
        assert 0 < (fitted == 200).mean() < 0.2
        assert set(np.unique(fitted)) == {0, 200}


def test_a_moderate_aspect_ratio_is_stretched_without_padding():
    image = np.full((100, 100, 3), 7, dtype=np.uint8)
    for fitted in both(image, INPUT):
        assert (fitted == 7).all()


def test_a_resize_averages():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    for fitted in both(stripes, (16, 16)):
        assert np.unique(fitted[:, :, 1:-1]).tolist() == [100]


@pytest.mark.parametrize("shape", [(67, 129), (200, 300), (500, 20)])
def test_both_implementations_agree_to_one_level(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours, fast = both(image, INPUT)
    assert np.abs(ours.astype(int) - fast.astype(int)).max() <= 1

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streetvision.io.resize_tensor import fit_tensor
from streetvision.models.config import ViewsConfig
from streetvision.models.multi_view import content_fraction, make_views, map_views
from streetvision.models.views import Box, plan_views

CONFIGS = st.builds(
    ViewsConfig,
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5]),
)
SIDES = st.one_of(st.integers(1, 12), st.integers(1, 5000))


@settings(max_examples=100)
@given(SIDES, SIDES, CONFIGS)
def test_the_tiles_cover_every_pixel_and_stay_inside(height, width, config):
    global_view, *tiles = plan_views(height, width, config)
    assert global_view == Box(0, 0, width, height)
    assert len(tiles) == config.count - 1
    assert all(0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height for box in tiles)
    assert len({(box.right - box.left, box.bottom - box.top) for box in tiles}) == 1
    columns, rows = (
        {(getattr(box, a), getattr(box, b)) for box in tiles} for a, b in (("left", "right"), ("top", "bottom"))
    )
    assert {x for left, right in columns for x in range(left, right)} == set(range(width))
    assert {y for top, bottom in rows for y in range(top, bottom)} == set(range(height))


@settings(max_examples=100)
@given(st.integers(200, 5000), st.integers(200, 5000), CONFIGS)
def test_neighboring_tiles_overlap_as_configured(height, width, config):
    _, *tiles = plan_views(height, width, config)
    for tile, following in pairwise(tiles):
        if tile.top == following.top:
            assert tile.right - following.left >= config.overlap * (tile.right - tile.left) - 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), CONFIGS)
def test_views_are_resized_like_whole_images(height, width, config):
    image = torch.randint(100, 256, (3, height, width), dtype=torch.uint8)
    views = make_views(image, config, image_size=(32, 32))
    assert views.pixels.shape == (config.count, 3, 32, 32)
    for pixels, content, valid, box in zip(*views[:3], plan_views(height, width, config), strict=True):
        left, top, right, bottom = content.tolist()
        if not valid:
            assert pixels.sum() == 0
            assert content.tolist() == [0, 0, 0, 0]
            continue
        crop = image[:, box.top : box.bottom, box.left : box.right]
        assert torch.equal(pixels, fit_tensor(crop, (32, 32)))
        assert (pixels[:, top:bottom, left:right] > 0).all()
        assert pixels.count_nonzero() == 3 * (right - left) * (bottom - top)
    assert views.mask[0]


def test_a_tile_keeps_details_that_the_global_view_loses():
    image = torch.zeros(3, 640, 640, dtype=torch.uint8)
    image[:, 400:402, 600:602] = 255
    views = make_views(image, ViewsConfig(rows=4, columns=4, overlap=0), image_size=(160, 160))
    assert views.pixels[0].max() < 100
    assert views.pixels[1 + 4 * 2 + 3].max() == 255
    assert views.pixels[1:12].max() == 0


def test_tiles_that_repeat_an_earlier_view_are_masked():
    image = torch.full((3, 1, 1), 9, dtype=torch.uint8)
    assert make_views(image, ViewsConfig(rows=2, columns=2), image_size=(8, 8)).mask.tolist() == [True] + [False] * 4
    thin = torch.full((3, 1, 40), 9, dtype=torch.uint8)
    assert make_views(thin, ViewsConfig(rows=2, columns=2, overlap=0), image_size=(8, 8)).mask.tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_content_fraction_is_the_area_that_is_not_padding():
    boxes = torch.tensor([[[0, 0, 8, 8], [0, 2, 8, 6], [0, 0, 0, 0]]])
    assert content_fraction(boxes, (8, 8)).tolist() == [[1.0, 0.5, 0.0]]


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_the_function_is_called_on_chunks_without_masked_views(chunk_size):
    pixels = torch.arange(2 * 3, dtype=torch.float32).view(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 4)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    sizes = []

    def function(images):
        sizes.append(len(images))
        return images.mean(dim=(2, 3)) + 1

    values = map_views(function, pixels, mask, chunk_size=chunk_size)
    assert values.shape == (2, 3, 3)
    assert values[..., 0].tolist() == [[1.0, 0.0, 3.0], [4.0, 5.0, 6.0]]
    assert sum(sizes) == 5
    assert max(sizes) <= chunk_size

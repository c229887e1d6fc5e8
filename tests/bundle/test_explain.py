import io
import json

import numpy as np
import pytest
from PIL import Image

from streetvision.bundle.explain import COLOR_0, COLOR_1, WIDTH, draw_decisive, draw_overlay
from streetvision.bundle.predictor import Prediction, ViewPrediction
from streetvision.models.views import Box, plan_patches


def draw(*views, height=300, width=400):
    prediction = Prediction("Roadwork", 1, 0.9, None, views)
    png = draw_overlay(np.full((height, width, 3), 255, dtype=np.uint8), prediction)
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("size", [(60, 80), (240, 320), (3000, 4000), (1920, 1080), (20, 900), (900, 20)])
def test_an_overlay_is_readable_whatever_the_size_of_the_image(size):
    height, width = size
    whole = ViewPrediction(Box(0, 0, width, height), 0.5, 0.1)
    half = width // 2
    tiles = ViewPrediction(Box(0, 0, half, height), 0.0, 0.1), ViewPrediction(Box(half, 0, width, height), 1.0, 0.8)
    drawn = draw(whole, *tiles, height=height, width=width)
    assert drawn.shape[1] == WIDTH
    assert drawn.shape[0] <= 2500
    assert (drawn[:60] < 100).all(axis=2).sum() > 100, "the caption has its full size"
    # Each tile is shown on its own below the picture, in a frame of its color, with its numbers under it.
    for color in (COLOR_0, COLOR_1):
        assert (drawn == color).all(axis=2).any()


def test_the_heat_map_is_stronger_where_the_weight_is_larger():
    whole = ViewPrediction(Box(0, 0, 400, 300), 0.5, 0.1)
    tiles = ViewPrediction(Box(0, 0, 200, 300), 1.0, 0.1), ViewPrediction(Box(200, 0, 400, 300), 1.0, 0.8)
    drawn = draw(whole, *tiles).astype(int)
    weak, strong = drawn[110, 60], drawn[110, WIDTH - 60]
    assert 0 < weak[0] - weak[2] < strong[0] - strong[2]


def test_overlapping_tiles_do_not_hide_each_other():
    whole = ViewPrediction(Box(0, 0, 400, 300), 0.5, 0.1)
    boxes = [Box(left, 0, left + 200, 300) for left in (0, 50, 100, 150, 200)] * 2
    one = draw(whole, *(ViewPrediction(box, 0.5, 0.5) for box in boxes[:5]))
    two = draw(whole, *(ViewPrediction(box, 0.5, 0.5) for box in boxes))
    assert len(two) > len(one), "a second row of tiles"


def test_of_many_patches_the_few_of_largest_weight_are_shown():
    whole = ViewPrediction(Box(0, 0, 400, 300), 0.5, 1.0)
    boxes = [Box(x, y, x + 20, y + 20) for y in range(0, 300, 20) for x in range(0, 400, 20)]
    views = [ViewPrediction(box, float(number == 7), 0.5 if number == 7 else 0.001) for number, box in enumerate(boxes)]
    drawn = draw(whole, *views).astype(int)
    assert len(drawn) < len(draw(whole, *views[:30]))
    scale = (WIDTH - 32) / 400
    patch = drawn[round(84 + 3 * scale), round(16 + (boxes[7].left + 3) * scale)]
    assert patch[0] - patch[2] > 50, "the patch of largest weight has the color of its probability"


def test_patches_of_an_image_of_a_few_pixels():
    whole = ViewPrediction(Box(0, 0, 3, 2), 0.5, 1.0)
    views = [ViewPrediction(box, 1.0, 0.1) for box in plan_patches(2, 3, (64, 64), 64)]
    assert any(view.box.left == view.box.right for view in views)
    drawn = draw(whole, *views, height=2, width=3)
    assert drawn.shape[1] == WIDTH
    assert (drawn == COLOR_1).all(axis=2).any()
    assert draw_decisive(np.zeros((2, 3, 3), dtype=np.uint8), views)
    assert draw_decisive(np.zeros((900, 1200, 3), dtype=np.uint8), [ViewPrediction(Box(1, 1, 2, 2), 1.0, 0.1)])


def test_a_thumbnail_frames_the_tiles_of_largest_weight():
    tiles = [
        ViewPrediction(Box(left, 0, left + 300, 900), float(left == 900), weight)
        for left, weight in ((0, 0.3), (300, -0.2), (600, 0.1), (900, 0.9))
    ]
    jpeg = draw_decisive(np.full((900, 1200, 3), 255, dtype=np.uint8), tiles)
    drawn = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert drawn.shape == (180, 240, 3)
    thick, thin = drawn[90, 180:184], drawn[90, 0:2]
    assert np.abs(thick - COLOR_1).max() < 60, "the tile of largest weight has the color of its probability"
    assert np.abs(thin[0] - COLOR_0).max() < 60
    assert drawn[90, 122:176].min() > 200, "the fourth tile has no frame"


def test_a_single_view_has_no_heat_map():
    drawn = draw(ViewPrediction(Box(0, 0, 4000, 3000), 0.5, 1.0), height=3000, width=4000)
    assert (drawn[100:-20, 20:-20] == 255).all()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_without_fusion_an_explanation_has_one_view(finished_run, scenes, tmp_path, command, form):
    images = sorted(scenes.rglob("*.jpg"))[:2]
    arguments = ["predict", "--bundle", finished_run / "export", "--format", form, *images, tmp_path / "none.jpg"]
    _, plain, _ = command(*arguments)
    code, out, _ = command(*arguments, "--explain", tmp_path / "drawings")
    assert code == 2, "one image does not exist"
    assert sorted(path.name for path in (tmp_path / "drawings").iterdir()) == [
        f"{number:04d}-{path.stem}.png" for number, path in enumerate(images, start=1)
    ]
    if form == "csv":
        header, *rows = (line.split(",") for line in out.splitlines())
        assert header == plain.splitlines()[0].split(",")
        assert [row[:3] for row in rows] == [line.split(",")[:3] for line in plain.splitlines()[1:]]
        return
    for line, before in zip(map(json.loads, out.splitlines()[:2]), map(json.loads, plain.splitlines()), strict=False):
        (view,) = line.pop("views")
        assert (view["box"], view["weight"]) == ([0, 0, 96, 72], 1.0)
        assert line.pop("probability") == pytest.approx(before.pop("probability"), abs=1e-6)
        assert line == before

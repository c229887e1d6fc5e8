import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from streetvision.bundle.explain import ALL, NONE, TEXT_PIXELS, draw_decisive, draw_overlay
from streetvision.bundle.predictor import Prediction, ViewAnswer
from streetvision.models.multi_view import Box


def picture(*views, height=300, width=400):
    prediction = Prediction("Roadwork", 1, 0.9, None, views)
    png = draw_overlay(torch.zeros(3, height, width, dtype=torch.uint8), prediction)
    return np.asarray(Image.open(io.BytesIO(png)))[2 * TEXT_PIXELS :]


def test_a_tile_is_framed_in_the_colour_of_its_probability():
    whole = ViewAnswer(Box(0, 0, 400, 300), 0.5, 0.1)
    drawn = picture(whole, ViewAnswer(Box(0, 0, 200, 300), 0.0, 0.1), ViewAnswer(Box(200, 0, 400, 300), 1.0, 0.8))
    assert tuple(drawn[299, 100]) == NONE
    assert tuple(drawn[299, 300]) == ALL
    thin, thick = ((drawn[:, column] == colour).all(axis=1)[150:].sum() for column, colour in ((100, NONE), (300, ALL)))
    assert thick > thin > 0


def test_a_thumbnail_frames_the_tiles_that_counted_most():
    tiles = [
        ViewAnswer(Box(left, 0, left + 300, 900), float(left == 900), weight)
        for left, weight in ((0, 0.3), (300, -0.2), (600, 0.1), (900, 0.9))
    ]
    jpeg = draw_decisive(torch.full((3, 900, 1200), 255, dtype=torch.uint8), tiles)
    drawn = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert drawn.shape == (180, 240, 3)
    thick, thin = drawn[90, 180:184], drawn[90, 0:2]
    assert np.abs(thick - ALL).max() < 60, "the tile that counted most, by what it saw"
    assert np.abs(thin[0] - NONE).max() < 60
    assert drawn[90, 122:176].min() > 200, "the least of four has no frame"


def test_a_large_image_is_drawn_small_and_a_single_view_has_no_frame():
    drawn = picture(ViewAnswer(Box(0, 0, 4000, 3000), 0.5, 1.0), height=3000, width=4000)
    assert drawn.shape == (960, 1280, 3)
    assert not drawn.any()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_bundle_of_single_views_explains_itself_with_one(finished_run, scenes, tmp_path, command, form):
    images = sorted(scenes.rglob("*.jpg"))[:2]
    asked = ["predict", "--bundle", finished_run / "export", "--format", form, *images, tmp_path / "none.jpg"]
    _, plain, _ = command(*asked)
    code, out, _ = command(*asked, "--explain", tmp_path / "pictures")
    assert code == 2, "one image is not there"
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
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

"""Image quality: each value moves as it should, for any size."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from streetvision.data.image_file import DecodedImage, decode_file
from streetvision.data.quality import measure_quality


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240))


def quality(image):
    return measure_quality(DecodedImage(np.asarray(image), (image.height, image.width)))


def test_each_value_moves_with_its_cause(photo):
    plain = quality(photo)
    assert (plain.width, plain.height, plain.jpeg_quality) == (320, 240, None)
    assert quality(photo.point(lambda v: v // 2)).brightness == pytest.approx(plain.brightness / 2, rel=0.02)
    assert quality(photo.filter(ImageFilter.GaussianBlur(3))).sharpness < plain.sharpness / 2
    flat = quality(Image.new("RGB", (50, 50), "gray"))
    assert (flat.contrast, flat.sharpness) == (pytest.approx(0, abs=1e-6), 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (5000, 2)])
def test_any_size_has_finite_values(size):
    values = quality(Image.new("RGB", size, "red"))
    assert np.isfinite(values[:5]).all()


@pytest.mark.parametrize("setting", [20, 50, 75, 90, 95])
def test_jpeg_quality_is_that_of_the_encoder(photo, setting):
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=setting)
    decoded = decode_file(content.getvalue())
    assert decoded.jpeg_quality == pytest.approx(setting, abs=1.5)
    assert measure_quality(decoded).jpeg_quality == decoded.jpeg_quality


def test_a_reduced_image_has_its_full_size(photo):
    content = io.BytesIO()
    photo.save(content, "JPEG")
    reduced = decode_file(content.getvalue(), decode_size=lambda _: (1, 1))
    assert reduced.pixels.shape == (30, 40, 3)
    measured = measure_quality(reduced)
    assert (measured.width, measured.height) == (320, 240)
    assert measured.brightness == pytest.approx(quality(photo).brightness, abs=0.02)

import io

import numpy as np
import pytest
from PIL import Image

from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.thumbnail import smaller_jpeg, thumbnail


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("size", "expected"), [((2400, 1600), (240, 160)), ((200, 96), (200, 96))])
def test_an_image_is_reduced_to_240_pixels_at_most(tmp_path, kind, size, expected):
    Image.effect_noise(size, 60).save(tmp_path / "a", kind)
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "a", DEFAULT_LIMITS))).size == expected


def test_a_large_jpeg_looks_as_if_it_were_decoded_at_its_size(tmp_path):
    ramp = np.linspace(0, 255, 3200, dtype=np.uint8)
    picture = Image.fromarray(np.stack([np.broadcast_to(ramp, (1600, 3200))] * 3, axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "a.png")
    jpeg, png = (
        np.asarray(Image.open(io.BytesIO(smaller_jpeg(tmp_path / name, 400, DEFAULT_LIMITS))), dtype=float)
        for name in ("a.jpg", "a.png")
    )
    assert jpeg.shape == png.shape == (400, 200, 3)
    assert np.abs(jpeg - png).mean() < 2

"""JPEGs that the decoder reduces: the pixels, their size, and the limits, which are those of the full image."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import UndecodableImage, decode_file, read_file
from streetvision.data.image_input import decode_input

WIDTH, HEIGHT = 200, 120


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with noise, and with no symmetry, so that every rotation shows."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([200 * x / width, 200 * y / height, 200 * x * y / (width * height)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 50, smooth.shape)
    return Image.fromarray((smooth + noise).astype(np.uint8))


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def drafted(data: bytes, factor: int) -> np.ndarray:
    """What Pillow decodes at a scale of 1 / factor."""
    image = Image.open(io.BytesIO(data))
    image.draft(image.mode, (image.width // factor, image.height // factor))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def down_to(factor: int):
    """A smallest size that allows a reduction by `factor`, and by no larger one."""
    return lambda size: tuple(side // factor for side in size)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_pixels_are_those_of_pillows_draft(mode, options, factor):
    data = encoded(photo().convert(mode), **options)
    decoded = decode_file(data, decode_size=down_to(factor))
    assert decoded.pixels.shape[:2] == (HEIGHT // factor, WIDTH // factor)
    assert decoded.size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decoded.pixels, drafted(data, factor))


@pytest.mark.parametrize("subsampling", ["4:2:2", "4:2:0"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_chroma_of_fewer_pixels_is_that_of_pillows_draft(subsampling, factor):
    data = encoded(photo(), subsampling=subsampling)
    np.testing.assert_array_equal(decode_file(data, decode_size=down_to(factor)).pixels, drafted(data, factor))


def test_sampling_factors_that_only_pillow_decodes_are_decoded_at_full_size():
    data = encoded(photo().convert("CMYK"), subsampling=1)
    decoded = decode_file(data, decode_size=down_to(8))
    np.testing.assert_array_equal(decoded.pixels, drafted(data, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_and_the_smallest_size_is_that_of_the_upright_image(orientation):
    data = encoded(photo(), exif=exif(orientation))
    upright = decode_file(data)
    asked = []

    def least(size):
        asked.append(size)
        return down_to(4)(size)

    decoded = decode_file(data, decode_size=least)
    assert asked == [upright.pixels.shape[:2]] == [upright.size] == [decoded.size]
    np.testing.assert_array_equal(decoded.pixels, drafted(data, 4))


@pytest.mark.parametrize(
    ("least", "factor"),
    [((1, 1), 8), ((15, 25), 8), ((16, 25), 4), ((15, 26), 4), ((61, 1), 1), ((1, 100), 2), ((120, 200), 1)],
)
def test_the_reduction_is_the_largest_that_keeps_the_smallest_size(least, factor):
    decoded = decode_file(encoded(photo()), decode_size=lambda _: least)
    assert decoded.pixels.shape[:2] == (HEIGHT // factor, WIDTH // factor)


@pytest.mark.parametrize(
    ("width", "height", "factor"), [(200, 121, 1), (202, 120, 2), (204, 124, 4), (204, 122, 2), (208, 128, 8)]
)
def test_the_sides_are_multiples_of_the_factor(width, height, factor):
    decoded = decode_file(encoded(photo(width, height)), decode_size=lambda _: (1, 1))
    assert decoded.pixels.shape[:2] == (height // factor, width // factor)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded_at_full_size(kind):
    buffer = io.BytesIO()
    photo().save(buffer, kind)
    decoded = decode_file(buffer.getvalue(), decode_size=down_to(8))
    assert decoded.pixels.shape[:2] == decoded.size == (HEIGHT, WIDTH)


class TestPillowImages:
    data = encoded(photo(), exif=exif(6))
    reduced = decode_file(data, decode_size=down_to(4)).pixels

    def pixels(self, image):
        return decode_input(image, decode_size=down_to(4)).pixels

    def test_an_open_image_has_the_pixels_of_its_file_and_stays_usable(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(self.data)
        for image in (Image.open(io.BytesIO(self.data)), Image.open(tmp_path / "a.jpg")):
            np.testing.assert_array_equal(self.pixels(image), self.reduced)
            np.testing.assert_array_equal(self.pixels(image), self.reduced)
            assert image.convert("RGB").size == (WIDTH, HEIGHT)
        for value in (self.data, bytearray(self.data), tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
            np.testing.assert_array_equal(self.pixels(value), self.reduced)

    def test_a_photo_of_a_phone_with_two_images_has_the_pixels_of_the_first(self):
        buffer = io.BytesIO()
        photo().save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
        image = Image.open(buffer)
        expected = decode_file(buffer.getvalue(), decode_size=down_to(4)).pixels
        np.testing.assert_array_equal(self.pixels(image), expected)
        image.seek(1)
        assert self.pixels(image).max() < 10

    def test_a_loaded_image_keeps_its_pixels(self):
        image = Image.open(io.BytesIO(self.data))
        image.load()
        np.testing.assert_array_equal(self.pixels(image), decode_file(self.data).pixels)
        scaled = Image.open(io.BytesIO(self.data))
        scaled.draft("RGB", (WIDTH // 2, HEIGHT // 2))
        np.testing.assert_array_equal(self.pixels(scaled), drafted(self.data, 2))

    def test_an_open_image_is_read_within_the_limits(self):
        image = Image.open(io.BytesIO(self.data))
        with pytest.raises(UndecodableImage, match="MB; the limit is"):
            decode_input(image, limits=DecodeLimits(max_megabytes=0.001), decode_size=down_to(4))
        cut = Image.open(io.BytesIO(self.data[:-20]))
        with pytest.raises(UndecodableImage, match="is truncated"):
            decode_input(cut, decode_size=down_to(4))

    def test_an_orientation_that_was_removed_is_not_applied(self):
        image = Image.open(io.BytesIO(self.data))
        del image.getexif()[0x0112]
        np.testing.assert_array_equal(np.rot90(self.pixels(image), -1), self.reduced)


def reason_of(data: bytes, **limits) -> str:
    with pytest.raises(UndecodableImage) as caught:
        decode_file(data, limits=DecodeLimits(**limits), decode_size=down_to(8))
    return caught.value.reason


class TestLimits:
    def test_the_pixel_limit_is_that_of_the_full_size(self):
        data = encoded(photo())
        assert reason_of(data, max_megapixels=0.02).startswith("is 0.024 megapixels; the limit is 0.02")
        assert decode_file(data, limits=DecodeLimits(max_megapixels=0.0241), decode_size=down_to(8))
        cmyk = encoded(photo().convert("CMYK"))
        assert "a fifth" in reason_of(cmyk, max_megapixels=0.1)

    def test_the_limit_of_scans(self):
        data = encoded(photo(), progressive=True)
        last = data.rindex(b"\xff\xda")
        assert reason_of(data[:-2] + data[last:-2] * 2000 + b"\xff\xd9").endswith("the limit is 100")

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("missing", [1, 2, 50, 2000])
    def test_a_truncated_file_has_that_reason(self, progressive, missing):
        assert reason_of(encoded(photo(640, 480), progressive=progressive)[:-missing]) == "is truncated"

    def test_a_truncated_file_is_named(self, tmp_path):
        (tmp_path / "cut.jpg").write_bytes(encoded(photo())[:-20])
        with pytest.raises(UndecodableImage) as caught:
            read_file(tmp_path / "cut.jpg", decode_size=down_to(8))
        assert caught.value.message == f"{str(tmp_path / 'cut.jpg')!r} is truncated"

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_damaged_data_is_noted_as_at_full_size(self, mode, capfd):
        data = encoded(photo().convert(mode))
        for damaged in (data[:-400] + b"\xff\xd9", data[:3000] + b"\x7f" * 300 + data[3300:]):
            full, reduced = decode_file(damaged), decode_file(damaged, decode_size=down_to(8))
            assert full.damage is not None
            assert reduced.damage == full.damage
            assert reduced.pixels.shape == (15, 25, 3)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_mutated_images_decode_or_are_rejected(self, data):
        mutant = bytearray(encoded(photo(24, 16), exif=exif(6)))
        for _ in range(data.draw(st.integers(1, 6))):
            place = data.draw(st.integers(0, len(mutant) - 1))
            mutant[place : place + data.draw(st.integers(1, 4))] = data.draw(st.binary(min_size=0, max_size=4))
            mutant = mutant or bytearray(b"\x00")
        with contextlib.suppress(UndecodableImage):
            image = decode_file(bytes(mutant), limits=DecodeLimits(max_megapixels=1), decode_size=lambda _: (2, 2))
            assert image.pixels.dtype == np.uint8
            assert image.pixels.shape[2] == 3


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_at_full_size_the_pixels_are_those_of_torchvision(mode, options):
    io_module = pytest.importorskip("torchvision.io")
    torch = pytest.importorskip("torch")
    data = encoded(photo().convert(mode), **options)
    encoded_tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    expected = io_module.decode_jpeg(encoded_tensor, mode=io_module.ImageReadMode.RGB)
    np.testing.assert_array_equal(decode_file(data).pixels, expected.permute(1, 2, 0).numpy())

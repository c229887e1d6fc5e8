import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from streetvision.data.config import DecodeLimits
from streetvision.data.decode import decode_image, read_image
from streetvision.data.image_file import UndecodableImage, decode_file, decode_pixels, read_pixels

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture, so that lossy formats stay near it, with no symmetry, so that every rotation shows."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 * x * y / (width * height)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


def reason_of(data: bytes, **limits) -> str:
    with pytest.raises(UndecodableImage) as caught:
        decode_image(data, limits=DecodeLimits(**limits))
    return caught.value.reason


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, *, bits: int, color: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)


@pytest.mark.parametrize("name", [b"JFIF\0", b"\xff\xda"])
def test_jpeg_headers_without_an_effect_on_the_pixels(name):
    """The version 2 of JFIF, and a last coefficient that only a progressive JPEG reads, are no damage."""
    data = bytearray(encoded(photo(), "JPEG"))
    position = data.index(name) + (5 if name.startswith(b"JFIF") else 12)
    assert data[position] in {1, 63}
    data[position] = 2
    changed, plain = (decode_file(bytes(content)) for content in (data, encoded(photo(), "JPEG")))
    assert changed.damage is None
    assert np.array_equal(changed.pixels, plain.pixels)
    assert reason_of(bytes(data[:-40])) == "is truncated"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_rgb_near_the_picture(kind):
    image = decode_image(encoded(photo(), kind))
    assert image.shape == (3, 32, 48)
    assert image.dtype == torch.uint8
    assert np.abs(as_array(image) - np.asarray(photo()).astype(int)).mean() < 6


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quick_jpeg_path_equals_pillow(mode, options):
    data = encoded(photo(129, 67).convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(as_array(decode_image(data)), expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_pillow_alone_gives_the_same_pixels(kind, tmp_path):
    data = encoded(photo(129, 67), kind)
    (tmp_path / "photo").write_bytes(data)
    expected = as_array(decode_image(data))
    np.testing.assert_array_equal(decode_pixels(data), expected)
    np.testing.assert_array_equal(read_pixels(tmp_path / "photo"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_orientation_is_applied_the_same_for_every_format(kind, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo().convert(mode)
    image = decode_image(encoded(stored, kind, exif=exif))
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    assert image.shape[1:] == expected.shape[:2]
    assert np.abs(as_array(image) - expected).mean() < 6


def test_orientation_of_a_compressed_tiff_is_applied_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encoded(photo(), "TIFF", exif=exif, compression="tiff_lzw"))
    np.testing.assert_array_equal(as_array(image), np.asarray(photo().transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(as_array(decode_image(encoded(photo(), "PNG", exif=exif))), np.asarray(photo()))


def test_damaged_exif_is_ignored():
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00no tiff header here")
    assert decode_image(data).shape == (3, 32, 48)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), kind))
    assert image[0].tolist() == [[0, 0, 1, 1, 128, 255]]
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_sixteen_bit_color_keeps_the_high_byte():
    raw = b"\x00" + struct.pack(">3H", 65535, 32768, 200)
    data = png_chunks(png_header(1, 1, bits=16, color=2), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    assert decode_image(data).flatten().tolist() == [255, 128, 0]


def test_pixels_of_unknown_scale_are_rejected():
    floats = Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32))
    assert reason_of(encoded(floats, "TIFF")) == "has 32-bit pixels of unknown scale"


def test_cmyk_jpeg_with_adobe_inversion():
    solid = {"red": (0, 255, 255, 0), "white": (0, 0, 0, 0), "black": (0, 0, 0, 255)}
    expected = {"red": (255, 0, 0), "white": WHITE, "black": BLACK}
    for name, ink in solid.items():
        data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert b"Adobe" in data
        assert np.abs(as_array(decode_image(data)) - expected[name]).max() <= 3


def test_cmyk_tiff_is_not_inverted():
    image = decode_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert image[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_put_over_white(kind):
    rgba = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    image = decode_image(encoded(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert image[0, 0].tolist() == [255, 0, 127]


def test_gray_with_alpha_is_put_over_white():
    assert decode_image(encoded(Image.new("LA", (1, 1), (10, 0)), "PNG")).flatten().tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encoded(image, kind, transparency=0))
    assert as_array(pixels)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_transparent_color_is_white():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    pixels = decode_image(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert as_array(pixels)[0].tolist() == [[255, 255, 255], [1, 2, 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_modes_with_few_colors_become_three_channels(mode):
    picture = photo().convert(mode)
    np.testing.assert_array_equal(
        as_array(decode_image(encoded(picture, "PNG"))), np.asarray(picture.convert("RGB")).astype(int)
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image = decode_image(data)
    assert image.shape == (3, 10, 20)
    assert image[:, 5, 5].tolist() == [255, 0, 0]


def test_a_phone_photo_with_two_images_gives_the_first():
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(as_array(decode_image(data)) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert reason_of(data[: int(len(data) * share)]) in {"is truncated", "is damaged"}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("n_missing", [1, 2, 50, 2000])
def test_a_truncated_jpeg_has_that_reason(progressive, n_missing):
    data = encoded(photo(640, 480), "JPEG", progressive=progressive)
    assert reason_of(data[:-n_missing]) == "is truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is not a JPEG, PNG, WebP, BMP, GIF or TIFF image"),
        (b"\x00\x00\x01\x00" + b"\x00" * 40, "is not a JPEG, PNG, WebP, BMP, GIF or TIFF image"),
        (b"RIFF\x00\x00\x00\x00AVI ", "is damaged"),
        (b"\xff\xd8\xff", "is damaged"),
    ],
)
def test_bytes_that_are_not_an_image_give_a_plain_reason(data, reason):
    assert reason_of(data) == reason


def test_a_decompression_bomb_is_rejected_by_its_header():
    bomb = png_chunks(png_header(30_000, 30_000, bits=8, color=2), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    assert reason_of(bomb).startswith("is 900 megapixels; the limit is 20")
    assert "limits.max_megapixels=100" in reason_of(bomb)


def tiled_tiff(tile: int) -> bytes:
    """A gray image of 16 x 16 pixels in one compressed tile of `tile` x `tile`."""
    body = zlib.compress(bytes(range(256)) * (tile * tile // 256))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + body


def test_a_tile_over_the_limit_is_rejected_even_in_a_small_image():
    assert decode_image(tiled_tiff(16))[0].flatten().tolist() == list(range(256))
    assert reason_of(tiled_tiff(1024), max_megapixels=5).startswith("is 1.049 megapixels; the limit is 1 ")


def test_the_pixel_limit_is_inclusive():
    for kind, times in (("JPEG", 1), ("PNG", 5)):
        data = encoded(Image.new("L", (100, 10)), kind)
        assert decode_image(data, limits=DecodeLimits(max_megapixels=0.001 * times)).shape == (3, 10, 100)
        assert reason_of(data, max_megapixels=0.000999 * times).startswith("is 0.001 megapixels; the limit is 0.000999")


def test_the_byte_limit():
    data = encoded(Image.new("L", (8, 8)), "BMP")
    assert reason_of(data, max_megabytes=0.001) == f"is {len(data) / 1e6:.4g} MB; the limit is 0.001"


def many_scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated `count` more times."""
    data = encoded(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def test_a_jpeg_with_too_many_scans_is_rejected():
    scans = encoded(photo(), "JPEG", progressive=True).count(b"\xff\xda")
    assert reason_of(many_scans(2000)) == f"has {2000 + scans:,} scans; the limit is 100"


def test_scan_markers_that_are_not_scans_do_not_count():
    in_comment = encoded(photo(), "JPEG", comment=b"\xff\xda" * 500)
    behind_the_end = encoded(photo(), "JPEG") + b"\x00\x02" + b"\xff\xda\x00\x02" * 500
    for data in (in_comment, behind_the_end):
        assert decode_image(data).shape == (3, 32, 48)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_images_decode_or_are_rejected(data):
    kind = data.draw(st.sampled_from(FORMATS))
    mutant = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(mutant) - 1))
        mutant[place : place + data.draw(st.integers(1, 4))] = data.draw(st.binary(min_size=0, max_size=4))
        mutant = mutant or bytearray(b"\x00")
    try:
        image = decode_image(bytes(mutant), limits=DecodeLimits(max_megapixels=1))
    except UndecodableImage as error:
        assert error.reason.split()[0] in {"is", "has", "needs"}
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(FORMATS))
def test_headers_followed_by_noise_decode_or_are_rejected(noise, kind):
    with contextlib.suppress(UndecodableImage):
        decode_image(SEEDS[kind][:12] + noise, limits=DecodeLimits(max_megapixels=1))


def seed_with_exif(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(24, 16), kind, **({"exif": exif} if kind in WITH_EXIF else {}))


SEEDS = {kind: seed_with_exif(kind) for kind in FORMATS}


def test_read_image_names_the_file(tmp_path):
    good, cut, missing = tmp_path / "good.jpg", tmp_path / "cut.jpg", tmp_path / "missing.jpg"
    good.write_bytes(encoded(photo(), "JPEG"))
    cut.write_bytes(good.read_bytes()[:-20])
    assert torch.equal(read_image(good), decode_image(good.read_bytes()))
    for path, reason in ((cut, "is truncated"), (missing, "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(UndecodableImage) as caught:
            read_image(path)
        assert caught.value.message == f"{str(path)!r} {reason}"


def test_read_image_rejects_a_large_file_before_reading_it(tmp_path):
    path = tmp_path / "large.bmp"
    with path.open("wb") as handle:
        handle.truncate(3_000_000_000)
    with pytest.raises(UndecodableImage, match="is 3,000 MB; the limit is 400"):
        read_image(path)

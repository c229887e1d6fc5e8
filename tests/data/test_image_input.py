"""Every kind of value that holds an image gives the pixels of its file, or a DataError."""

import errno
import io
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from streetvision.contracts.errors import DataError, MachineError
from streetvision.data import image_file
from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import check_decoder, check_decoders, decode_file, read_file
from streetvision.data.image_input import decode_input

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def gray(bits: int, *, inverted: bool = False, order: str = "<") -> tuple[bytes, np.ndarray]:
    """A gray TIFF of 12 or 16 bits, and the expected 8-bit gray values."""
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    if bits == 16:
        body = values.astype(f"{order}u2").tobytes()
    else:
        pairs = values.reshape(-1, 2).astype(int)
        body = b"".join(((int(a) << 12) | int(b)).to_bytes(3, "big") for a, b in pairs)
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: int(not inverted), 273: 8, 277: 1, 278: 16, 279: len(body)}
    code = "little" if order == "<" else "big"
    head = (b"II*\0" if order == "<" else b"MM\0*") + (8 + len(body)).to_bytes(4, code)
    table = b"".join(
        tag.to_bytes(2, code) + (4).to_bytes(2, code) + (1).to_bytes(4, code) + value.to_bytes(4, code)
        for tag, value in tags.items()
    )
    expected = np.round(values / (2**bits - 1) * 255).astype(int)
    return head + body + len(tags).to_bytes(2, code) + table + b"\0" * 4, 255 - expected if inverted else expected


FILES = {
    "rgba": encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])), "PNG"),
    "rgba webp": encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])), "WEBP", lossless=True),
    "gray alpha": encoded(Image.fromarray(NOISE[..., 0]).convert("LA"), "PNG"),
    "palette": encoded(Image.fromarray(NOISE).convert("P"), "PNG", transparency=3),
    "transparent color": encoded(Image.fromarray(NOISE), "PNG", transparency=tuple(map(int, NOISE[0, 0]))),
    "orientation jpeg": encoded(Image.fromarray(NOISE), "JPEG", exif=exif(6)),
    "orientation png": encoded(Image.fromarray(NOISE), "PNG", exif=exif(8)),
    "orientation tiff": encoded(Image.fromarray(NOISE), "TIFF", exif=exif(5)),
    "orientation webp": encoded(Image.fromarray(NOISE), "WEBP", exif=exif(3)),
    "16 bits": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "16 bits transparent": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG", transparency=257),
    "16 bits tiff": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "TIFF"),
    "12 bits": gray(12)[0],
    "white is zero": gray(16, inverted=True)[0],
    "cmyk": encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "black and white": encoded(Image.fromarray(NOISE).convert("1"), "PNG"),
    "animation": encoded(Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
}


PILLOW = {
    "exif_transpose": ImageOps.exif_transpose,
    "copy": lambda image: image.copy(),
    "convert": lambda image: image.convert("RGB"),
}


@pytest.mark.parametrize("change", PILLOW)
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("orientation")])
def test_the_orientation_is_applied_once_after_methods_of_pillow(name, change):
    data = FILES[name]
    changed = PILLOW[change](Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_input(changed).pixels, decode_input(data).pixels)


def test_the_orientation_of_an_image_rotated_by_hand_is_applied_unless_it_is_removed():
    data = FILES["orientation png"]
    rotated = Image.open(io.BytesIO(data)).rotate(90, expand=True)
    assert not np.array_equal(decode_input(rotated).pixels, decode_input(data).pixels)
    del rotated.getexif()[0x0112]
    assert np.array_equal(decode_input(rotated).pixels, decode_input(data).pixels)


@pytest.mark.parametrize("name", FILES)
def test_a_pillow_image_has_the_pixels_of_its_file(name, tmp_path):
    data = FILES[name]
    (tmp_path / "image").write_bytes(data)
    expected = decode_input(data).pixels
    opened, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    loaded.load()
    for value in (opened, loaded, bytearray(data), memoryview(data), tmp_path / "image", str(tmp_path / "image")):
        np.testing.assert_array_equal(decode_input(value).pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_gray_is_scaled_by_its_bits_and_its_interpretation_or_refused(bits, inverted, order):
    data, expected = gray(bits, inverted=inverted, order=order)
    if (bits, inverted, order) not in {(12, False, "<"), (16, False, "<"), (16, True, "<"), (16, False, ">")}:
        with pytest.raises(DataError, match="not supported"):
            decode_file(data)
        return
    pixels = decode_file(data).pixels.astype(int)
    assert np.abs(pixels - expected[..., None]).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("sample_format", [2, 3, 4])
def test_pixels_that_are_not_unsigned_integers_are_refused(sample_format):
    data = bytearray(gray(16)[0])
    place = data.index((278).to_bytes(2, "little"), 8 + 512)  # RowsPerStrip becomes SampleFormat; it has a default
    data[place : place + 2] = (339).to_bytes(2, "little")
    data[place + 8 : place + 12] = sample_format.to_bytes(4, "little")
    with pytest.raises(DataError):
        decode_input(bytes(data))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pillow_images_without_a_scale_are_refused(mode):
    with pytest.raises(DataError):
        decode_input(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "RGBa", "La", "PA", "RGBX", "CMYK", "I;16", "I;16B"])
def test_pillow_images_of_any_other_mode_are_read_or_refused(mode):
    with suppress(DataError):
        assert decode_input(Image.new(mode, (4, 3))).pixels.shape == (3, 4, 3)


def test_a_pillow_image_is_read_within_the_limits_and_reports_a_cut_file():
    data = encoded(Image.fromarray(NOISE), "PNG")
    with pytest.raises(DataError):
        decode_input(Image.open(io.BytesIO(data[:-300])))
    with pytest.raises(DataError):
        decode_input(Image.open(io.BytesIO(data)), limits=DecodeLimits(max_megapixels=0.001))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(DataError):
        decode_input(closed)


ODD = [
    None,
    5,
    3.5,
    object(),
    {"a": 1},
    np.zeros((4, 4, 3), dtype=object),
    np.array([["a", "b"]]),
    np.zeros((4, 4, 3), dtype="datetime64[s]"),
    np.zeros((4, 4), dtype=[("r", "u1"), ("g", "u1")]),
    np.zeros((4, 4, 3), dtype=np.float32),
    np.zeros((4, 4, 4), dtype=np.uint8),
    np.zeros((0, 4, 3), dtype=np.uint8),
    Image.new("RGB", (0, 4)),
    Image.new("RGB", (4, 4)).crop((2, 2, 4, 2)),
    np.uint8(3),
    np.array(3, dtype=np.uint8),
    np.ma.masked_array(NOISE, mask=NOISE > 100),
    np.broadcast_to(np.uint8(0), (100_000, 100_000, 3)),
    torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
    torch.zeros(3, 4, 4, dtype=torch.uint8).to_sparse(),
    torch.zeros(3, 4, 4),
    torch.zeros(3, 4, 4, dtype=torch.complex64),
    torch.zeros(4, 4, 3, dtype=torch.uint8),
    torch.quantize_per_tensor(torch.zeros(3, 4, 4), 1.0, 0, torch.quint8),
    torch.nested.nested_tensor([torch.zeros(3, 4, 4, dtype=torch.uint8)]),
    "a\0b",
    "",
    b"",
    Path("/dev/null"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{type(value).__name__}")
def test_values_that_are_no_image_are_data_errors(value):
    with pytest.raises(DataError):
        decode_input(value)


def test_arrays_with_any_strides_are_images():
    for value in (NOISE[::-1], NOISE[:, ::-2], np.asfortranarray(NOISE), np.ma.masked_array(NOISE)):
        pixels = decode_input(value).pixels
        np.testing.assert_array_equal(pixels, np.asarray(value))
        torch.from_numpy(pixels)


class TestDamage:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)), "JPEG")

    @pytest.mark.parametrize(
        "damaged",
        [data[:3000] + b"\xff\xd9", data[:3000] + b"\x7f" * 300 + data[3300:], data[:3000] + b"\xff\xe5" + data[3002:]],
        ids=["cut", "overwritten", "marker"],
    )
    def test_damaged_data_of_a_jpeg_is_noted_without_output(self, damaged, capfd):
        for decoded in (decode_file(damaged), decode_input(damaged)):
            assert decoded.pixels.shape == (96, 96, 3)
            assert decoded.damage
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
    def test_a_damaged_tiff_is_refused_without_output(self, compression, capfd):
        data = bytearray(encoded(Image.fromarray(NOISE), "TIFF", compression=compression))
        data[100:400] = b"\xff" * 300
        with suppress(DataError):
            decode_file(bytes(data))
        assert capfd.readouterr() == ("", "")

    def test_damaged_data_of_a_cmyk_jpeg_is_noted(self):
        data = encoded(Image.fromarray(NOISE).resize((96, 96)).convert("CMYK"), "JPEG")
        assert decode_file(data).damage is None
        assert decode_file(data[:-400] + b"\xff\xd9").damage

    def test_a_wrong_checksum_of_the_pixels_of_a_png_is_noted(self):
        data = bytearray(encoded(Image.fromarray(NOISE), "PNG", compress_level=0))
        assert decode_file(bytes(data)).damage is None
        data[data.index(b"IDAT") + 200] ^= 255
        with suppress(DataError):
            assert decode_file(bytes(data)).damage

    @pytest.mark.parametrize("name", FILES)
    def test_whole_files_have_no_note(self, name):
        assert decode_file(FILES[name]).damage is None


class TestMachine:
    @pytest.fixture(autouse=True)
    def fresh(self):
        check_decoder.cache_clear()
        yield
        check_decoder.cache_clear()

    def test_a_decoder_that_does_not_work_is_no_damage(self, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("cannot load the library")

        monkeypatch.setattr(simplejpeg, "decode_jpeg", broken)
        for call in (check_decoders, lambda: decode_input(FILES["orientation jpeg"])):
            with pytest.raises(MachineError):
                call()

    def test_all_decoders_work_here(self):
        check_decoders()

    @pytest.mark.parametrize("name", FILES)
    def test_warnings_as_errors_are_no_damage(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode_file(FILES[name]).damage is None

    def test_a_warning_of_pillow_is_no_damage(self, monkeypatch):
        reader = image_file.READERS[b"\x89PNG\r\n\x1a\n"]
        load = reader.load

        def warn_and_load(self):
            warnings.warn("odd metadata", stacklevel=1)
            return load(self)

        monkeypatch.setattr(reader, "load", warn_and_load)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode_file(FILES["rgba"]).damage is None

    def test_too_many_open_files_are_no_damage(self, tmp_path, monkeypatch):
        def fail(_):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        (tmp_path / "a.jpg").write_bytes(FILES["orientation jpeg"])
        monkeypatch.setattr(Path, "read_bytes", fail)
        with pytest.raises(MachineError):
            read_file(tmp_path / "a.jpg")

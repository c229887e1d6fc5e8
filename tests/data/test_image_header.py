"""Numbers of headers that lie: of the wrong type, too large, or in tables that would fill memory or time."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from streetvision.data.image_file import UndecodableImage, decode_file
from streetvision.data.image_header import MAX_CHUNKS, TIFF_TYPE_SIZES, TiffTag, is_bounded_exif, read_header

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(changes: dict[int, tuple[int, int, bytes]], order: str = "<") -> bytes:
    """A gray TIFF of 16 x 16 pixels in which some tags have another (type, count, four bytes of the value)."""
    body = bytes(range(256))
    entries = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    table = {tag: (4, 1, struct.pack(f"{order}I", value)) for tag, value in entries.items()} | changes
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kind, n) + value for tag, (kind, n, value) in sorted(table.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(table)) + packed + b"\0" * 4


def decodes_quickly(data: bytes) -> str | None:
    """The reason of the refusal, or None; it must come at once. A pause of the garbage collector is not repeated."""
    seconds, reason = [], None
    while not seconds or (seconds[-1] >= 1 and len(seconds) < 2):
        started = time.process_time()
        try:
            decode_file(data)
        except UndecodableImage as error:
            reason = error.reason
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1
    return reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_header_has_the_size_of_the_image(kind):
    header = read_header(encoded(kind))
    assert (header.width, header.height, header.area) == (48, 32, 48 * 32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TIFF_TYPE_SIZES)
@pytest.mark.parametrize("tag", TiffTag)
def test_a_number_of_any_type_in_any_tag_is_read_or_refused(tag, kind, order):
    for count in (0, 1, 2, 3, 1000, 2**31, 2**32 - 1):
        for value in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"abc\0", struct.pack(f"{order}I", 8)):
            decodes_quickly(tiff({tag: (kind, count, value)}, order))


@pytest.mark.parametrize("tag", [TiffTag.TILE_WIDTH, TiffTag.TILE_HEIGHT, TiffTag.WIDTH, TiffTag.BITS_PER_SAMPLE])
@pytest.mark.parametrize("kind", [2, 5, 7, 11, 12])
def test_a_size_that_is_no_integer_is_refused(tag, kind):
    assert decodes_quickly(tiff({})) is None
    assert decodes_quickly(tiff({tag: (kind, 200, struct.pack("<I", 8))})) == "is damaged"


def test_tags_over_the_same_bytes_are_refused():
    many = {tag: (7, 200, struct.pack("<I", 8)) for tag in range(40000, 42000)}
    assert decodes_quickly(tiff(many)) == "is damaged"
    exif = tiff(many)
    assert not is_bounded_exif(exif)
    assert decodes_quickly(encoded("PNG", exif=exif)) is None


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused():
    data = bytearray(encoded("GIF"))
    frame = data.index(b",", 13 + 3 * 256)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    assert "megapixels" in decodes_quickly(bytes(data))


def test_comments_and_empty_chunks_cost_nothing():
    gif = encoded("GIF")
    start = 13 + 3 * 256
    assert decodes_quickly(gif[:start] + b"!\xfe" + (b"\xff" + b"x" * 255) * 50_000 + b"\0" + gif[start:]) is None
    png = encoded("PNG")
    empty = struct.pack(">I4s", 0, b"IDAT") + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert decodes_quickly(png[:33] + empty * MAX_CHUNKS + png[33:]) == f"has more than {MAX_CHUNKS:,} chunks"


def test_a_canvas_of_a_webp_over_the_limit_is_refused_by_its_header():
    data = bytearray(encoded("WEBP", exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\x00\xff\x3f\x00"
    assert "megapixels" in decodes_quickly(bytes(data))


def test_a_run_length_encoded_bmp_has_a_limit_of_its_own():
    data = bytearray(encoded("BMP"))
    struct.pack_into("<ii4xI", data, 18, 5000, 3000, 1)
    assert "run-length" in decodes_quickly(bytes(data))


def with_png_chunk(kind: bytes, body: bytes) -> bytes:
    png = encoded("PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    ("kind", "name", "text", "megabytes"),
    [
        (b"iCCP", b"profile\0\0", b"\0", 3),
        (b"zTXt", b"Comment\0\0", b"x", 3),
        (b"zTXt", b"Raw profile type exif\0\0", b"x", 300),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", b"x", 3),
        (b"tEXt", b"Comment\0", b"x", 3),
        (b"prVt", b"", b"x", 3),
    ],
)
def test_large_metadata_of_a_png_is_skipped(kind, name, text, megabytes):
    content = text * megabytes * 2**20
    body = name + (content if kind in (b"tEXt", b"prVt") else zlib.compress(content))
    decoded = decode_file(with_png_chunk(kind, body))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(PICTURE))
    assert decoded.damage is None


def test_the_orientation_in_the_xmp_of_a_png_is_applied():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    decoded = decode_file(with_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    assert decoded.pixels.shape == (48, 32, 3)

"""Headers of image files: every number is typed and bounded before anything is multiplied, allocated or decoded.

Decoders trust the header. A tile size given as text, a table that overlaps itself or a million empty chunks
cost them gigabytes or minutes. This module reads the few numbers that decide the cost of an image from the bytes alone.
"""

import re
import struct
import zlib
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from streetvision.contracts.errors import DataError

MAX_CHUNKS = 200_000
"""Chunks of a PNG, blocks of a GIF before its first frame, strips or tiles of a TIFF."""
MAX_RLE_BYTES = 4_000_000
"""Bytes of a run-length encoded BMP, and its pixels: Pillow decodes it in Python."""

JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Markers of a JPEG that are followed by a length, and the end of the image."""
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SCAN_OR_END = {b"\xff\xda", b"\xff\xd9"}
JPEG_SHORTEST = 20
"""Bytes; what is shorter is no part of a JPEG that a program wrote."""

PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
"""Chunks of a PNG that have an effect on its pixels. The others are skipped; their size does not matter."""
PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
PNG_TEXTS_WITH_EXIF = {
    b"XML:com.adobe.xmp": 2**20,
    b"Raw profile type exif": 2**16,
    b"Raw profile type APP1": 2**16,
}
"""Keyword of a text of a PNG that may have its orientation -> the size above which it is skipped."""
GIF_CONTROL = b"\xf9"
"""Label of the block of a GIF with the transparency of the next frame."""

TIFF_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Field type -> bytes per value. TIFF 6.0, section 2."""
TIFF_INTEGERS = {1: "B", 3: "H", 4: "L"}
"""Field types of unsigned integers -> struct code."""


class TiffTag(IntEnum):
    """Tags that describe how the pixels of a TIFF are stored. TIFF 6.0, section 8."""

    WIDTH = 256
    HEIGHT = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    STRIP_OFFSETS = 273
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PLANAR = 284
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339


TIFF_MOST_VALUES: dict[int, int] = (
    dict.fromkeys(map(int, TiffTag), 1)
    | dict.fromkeys((TiffTag.BITS_PER_SAMPLE, TiffTag.EXTRA_SAMPLES, TiffTag.SAMPLE_FORMAT), 16)
    | dict.fromkeys((TiffTag.STRIP_OFFSETS, TiffTag.STRIP_BYTES, TiffTag.TILE_OFFSETS, TiffTag.TILE_BYTES), MAX_CHUNKS)
)
"""Tag -> the largest number of its values."""
EXIF_TABLES = {0x8769, 0x8825}
"""Tags of EXIF data with the positions of further tables."""


class UndecodableImage(DataError):  # noqa: N818 (established name)
    """An image is rejected or cannot be decoded; `reason` completes the sentence "the image ..."."""

    def __init__(self, reason: str, *, name: str = "the image", hint: str | None = None) -> None:
        super().__init__(f"{name} {reason}", hint)
        self.reason = reason


class Header(NamedTuple):
    """Size of an image, and the cost of decoding it."""

    width: int
    """Pixels, before EXIF orientation."""
    height: int
    area: int
    """Pixels that decoding allocates: more than width times height if a tile or frame is larger than the image."""
    data: bytes
    """The file, without the parts that have no effect on its pixels."""


def read_header(data: bytes) -> Header:
    """Read the header of an image file of any supported format.

    Raises:
        UndecodableImage: The format is not supported, or a number of the header is missing or impossible.
    """
    read = next((read for magic, read in HEADER_READERS.items() if data.startswith(magic)), None)
    if read is None:
        raise UndecodableImage("is not a JPEG, PNG, WebP, BMP, GIF or TIFF image")
    try:
        header = read(data)
    except struct.error as error:
        raise UndecodableImage("is truncated") from error
    if header.width < 1 or header.height < 1:
        raise UndecodableImage("is damaged")
    return header


def _read_jpeg(data: bytes) -> Header:
    """The size in the first frame header, after any number of other segments."""
    position = 2
    while (marker := JPEG_SEGMENT.search(data, position)) is not None:
        start = marker.end()
        if marker[0][1] in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 3)
            return Header(width, height, width * height, data)
        if marker[0] in JPEG_SCAN_OR_END:
            break
        position = start + int.from_bytes(data[start : start + 2])
    raise UndecodableImage("is damaged" if position < len(data) or len(data) < JPEG_SHORTEST else "is truncated")


def _read_png(data: bytes) -> Header:
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise UndecodableImage("is damaged")
    width, height = struct.unpack_from(">II", data, 16)
    kept, position = [data[:8]], 8
    for number in range(MAX_CHUNKS + 1):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if number == MAX_CHUNKS:
            raise UndecodableImage(f"has more than {MAX_CHUNKS:,} chunks")
        if number and kind == b"IHDR":
            raise UndecodableImage("is damaged")
        if kind in PNG_NEEDED or (kind in PNG_TEXTS and _may_have_orientation(kind, data[position + 8 : end - 4])):
            kept.append(data[position:end])
        if kind == b"IEND":
            break
        position = end
    return Header(width, height, width * height, b"".join(kept))


def has_wrong_checksum(data: bytes) -> bool:
    """Whether the checksum of a part of the pixels of a PNG is wrong; Pillow does not verify them."""
    position, view = 8, memoryview(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IDAT" and end <= len(data):
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
                return True
        elif kind == b"IEND":
            break
        position = end
    return False


def _may_have_orientation(kind: bytes, body: bytes) -> bool:
    """Whether a text of a PNG may have the orientation, and is of moderate size when decompressed."""
    keyword, _, rest = body.partition(b"\0")
    limit = PNG_TEXTS_WITH_EXIF.get(keyword, 0)
    if len(body) > limit:
        return False
    compressed = b""
    if kind == b"zTXt":
        compressed = rest[1:]
    elif kind == b"iTXt" and rest[:1] != b"\0":
        compressed = rest[2:].split(b"\0", 2)[-1]
    try:
        decompressor = zlib.decompressobj()
        decompressor.decompress(compressed, limit)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def _read_webp(data: bytes) -> Header:
    """The size of the canvas."""
    if data[8:12] != b"WEBP":
        raise UndecodableImage("is damaged")
    kind = data[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        width, height = 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    else:
        raise UndecodableImage("is damaged")
    return Header(width, height, width * height, data)


def _read_bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(width, height, width * height, data)
    width, height, compression = struct.unpack_from("<ii4xI", data, 18)
    if compression in (1, 2) and max(len(data), width * abs(height)) > MAX_RLE_BYTES:
        raise UndecodableImage(f"is a run-length encoded BMP of more than {MAX_RLE_BYTES // 10**6} MB or megapixels")
    return Header(width, abs(height), width * abs(height), data)


def _read_gif(data: bytes) -> Header:
    """Comments and other blocks before the first frame are left out, but for the one with its transparency."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control = data[:position], b""
    for _ in range(MAX_CHUNKS):
        kind, start = data[position : position + 1], position
        if kind in {b"", b";"}:
            break
        if kind == b",":
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            area = max(width, left + frame_width) * max(height, top + frame_height)
            return Header(width, height, area, head + control + data[position:])
        position += 1
        if kind == b"!":
            position += 1
            for _ in range(MAX_CHUNKS):
                length = data[position] if position < len(data) else 0
                position += 1 + length
                if not length:
                    break
            if data[start + 1 : start + 2] == GIF_CONTROL:
                control = data[start:position]
    raise UndecodableImage("is damaged" if position < len(data) else "is truncated")


def _read_tiff(data: bytes) -> Header:
    """The area is that of a tile if a tile is larger than the image."""
    tags = read_tiff_tags(data)
    width, height, tile_width, tile_height = (
        tags.get(tag, (0,))[0] for tag in (TiffTag.WIDTH, TiffTag.HEIGHT, TiffTag.TILE_WIDTH, TiffTag.TILE_HEIGHT)
    )
    return Header(width, height, max(width * height, tile_width * tile_height), data)


def read_tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the tags of the first image of a TIFF that describe how its pixels are stored.

    Raises:
        UndecodableImage: One of them is not an unsigned integer, or has another number of values than it may have; or
            the table or the values are longer than the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    tags: dict[int, tuple[int, ...]] = {}
    try:
        for tag, kind, count, start in _tiff_entries(data, order):
            if tag in TIFF_MOST_VALUES:
                if kind not in TIFF_INTEGERS or not 1 <= count <= TIFF_MOST_VALUES[tag] or tag in tags:
                    raise UndecodableImage("is damaged")
                tags[tag] = struct.unpack_from(f"{order}{count}{TIFF_INTEGERS[kind]}", data, start)
    except struct.error as error:
        raise UndecodableImage("is truncated") from error
    return tags


def is_bounded_exif(exif: bytes) -> bool:
    """Whether EXIF data can be read at a cost in proportion to its length, with its tables of details and position."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    try:
        entries = _tiff_entries(exif, order)
        for tag, _, _, start in entries:
            if tag in EXIF_TABLES:
                _tiff_entries(exif, order, *struct.unpack_from(f"{order}L", exif, start))
    except (struct.error, UndecodableImage):
        return False
    return True


def _tiff_entries(data: bytes, order: str, table: int | None = None) -> list[tuple[int, int, int, int]]:
    """The entries (tag, type, number of values, position of the values) of a table, by default the first."""
    if table is None:
        (table,) = struct.unpack_from(f"{order}L", data, 4)
    (n_entries,) = struct.unpack_from(f"{order}H", data, table)
    entries, total = [], 0
    for place in range(table + 2, table + 2 + 12 * n_entries, 12):
        tag, kind, count, start = struct.unpack_from(f"{order}HHLL", data, place)
        size = TIFF_TYPE_SIZES.get(kind, 1) * count
        total += size
        entries.append((tag, kind, count, place + 8 if size <= 4 else start))
    # Values do not overlap in a file that a program wrote. Many tags over the same bytes would fill the memory.
    if total > len(data):
        raise UndecodableImage("is damaged")
    return entries


HEADER_READERS: dict[bytes, Callable[[bytes], Header]] = {
    b"\xff\xd8\xff": _read_jpeg,
    b"\x89PNG\r\n\x1a\n": _read_png,
    b"RIFF": _read_webp,
    b"BM": _read_bmp,
    b"GIF8": _read_gif,
    b"II*\x00": _read_tiff,
    b"MM\x00*": _read_tiff,
}
"""First bytes of a file -> the reader of its header."""

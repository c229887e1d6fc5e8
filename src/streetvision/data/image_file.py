"""Read image files to uint8 RGB arrays, safely for untrusted files. Does not import torch.

The header is read first. No pixels are decoded before the format, the number of pixels and the number of scans are
known to be within the limits. Every format gives the same kind of array: the first frame, three channels, EXIF
orientation applied, transparency over white, gray of 12 or 16 bits scaled to 8. Color profiles are not applied. A
decoder may reduce a JPEG, which takes less time than to resize it.

What a decoder finds wrong with a file that it decodes all the same is the `damage` of this file.

Shapes: H and W are pixels, after EXIF orientation.
"""

import ctypes
import errno
import io
import re
import stat
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from streetvision.contracts.errors import MachineError
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits
from streetvision.data.image_header import (
    Header,
    TiffTag,
    has_wrong_checksum,
    is_bounded_exif,
    read_header,
)
from streetvision.data.image_header import (
    UndecodableImage as UndecodableImage,
)
from streetvision.io.atomic import sha256_bytes
from streetvision.io.resize import DecodeSize, ImageSize

# Pillow warns of odd metadata, which is not used, and names no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _silence_libtiff() -> None:
    """Stop libtiff from writing to standard error: its messages name no file, and Pillow raises an error as well."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # not Linux
    for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "libtiff" in line}:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(path).TIFFSetErrorHandler(None)


_silence_libtiff()

Pixels: TypeAlias = NDArray[np.uint8]
"""A decoded image, uint8 (H, W, 3), RGB."""

READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"GIF8": GifImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}
"""First bytes of a file -> its reader. No other format is opened, although Pillow knows more."""

ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
"""EXIF orientation -> (whether to swap H and W, axes of (H, W, 3) to flip after that). EXIF 2.32, tag 0x0112."""

JPEG = b"\xff\xd8\xff"
REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG may be reduced: the scaled inverse DCTs of libjpeg."""
MEMORY_FACTOR = 5
"""Memory per pixel of other images relative to a plain JPEG, at least. Their pixel limit is smaller by this factor."""

START_OF_SCAN = b"\xff\xda"
SCAN_NUMBER = int.from_bytes(START_OF_SCAN, "little")
END_OF_IMAGE = b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Any JPEG marker except restart markers, which occur inside a scan; 0xff00 is an escaped byte of the scan."""

MISSING_FILE = "does not exist"
"""Reason of an image whose file is missing."""
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of reading a file that are faults of the machine."""
ONLY_PILLOW = ("subsampling", "unknown JFIF revision", "Invalid SOS parameters")
"""Parts of the decoder's errors for JPEGs whose pixels Pillow decodes as they are meant: unusual sampling factors, and
numbers in the headers that have no effect on the pixels."""
NOT_SUPPORTED = ("unknown pixel mode", "cannot handle", "not available", "Unsupported", "conversion from")
"""Parts of Pillow's errors for valid images that it does not read."""
UNSIGNED = 1
"""Value of TiffTag.SAMPLE_FORMAT; also its default."""
WHITE_IS_ZERO = 0
"""Value of TiffTag.PHOTOMETRIC."""
IJG_LUMINANCE_SUM = 3688
"""Sum of the luminance table at quality 50: ITU-T T.81, table K.1."""
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image, and what is wrong with them."""

    pixels: Pixels
    """(H, W, 3), reduced if that was allowed."""
    size: ImageSize
    """H, W of the image, before it was reduced."""
    damage: str | None = None
    """What the decoder found wrong; completes the sentence "the image ..."; None: nothing."""
    jpeg_quality: float | None = None
    """Estimated quality setting of the encoder, from 1 to 100; None: not a JPEG file."""


def decode_file(
    data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> DecodedImage:
    """Decode one image file.

    Args:
        data: Content of the file.
        limits: Largest accepted image.
        decode_size: Smallest size to which a JPEG may be reduced, by 2, 4 or 8 if its sides are multiples of that;
            None: it is not reduced.

    Raises:
        UndecodableImage: The bytes are not a complete image within `limits`.
        MachineError: The decoder of this format does not work on this machine.
    """
    try:
        try:
            return _decode(data, limits, decode_size)
        except Warning:  # with python -W error; a warning of a decoder is no fault of the program
            with _warnings_lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _decode(data, limits, decode_size)
    except UndecodableImage:
        raise
    except Exception as error:  # on damaged bytes, decoders raise errors of nearly every type
        check_decoder(_find_reader(data))
        raise UndecodableImage(_reason(error)) from error


def decode_pixels(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode one image file to (H, W, 3) uint8 RGB, whether it is damaged or not; raises as `decode_file`."""
    return decode_file(data, limits=limits).pixels


def read_file(
    path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> DecodedImage:
    """Decode the image file `path`; see `decode_file` for the arguments.

    Raises:
        UndecodableImage: See `decode_file`; the message names the path.
        MachineError: See `decode_file`.
    """
    try:
        return decode_file(read_image_bytes(path, limits=limits), limits=limits, decode_size=decode_size)
    except UndecodableImage as error:
        raise UndecodableImage(error.reason, name=repr(str(path))) from error


def read_pixels(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode the image file `path` to (H, W, 3) uint8 RGB, whether it is damaged or not; raises as `read_file`."""
    return read_file(path, limits=limits).pixels


def decode_pillow(
    image: Image.Image, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_size: DecodeSize | None = None
) -> DecodedImage:
    """Return the pixels of a Pillow image: the same as those of its file.

    Only a JPEG whose pixels Pillow has not loaded can be reduced. The EXIF orientation is applied if the image has one.
    Most methods of Pillow keep it, and `rotate` and `transpose` do so too; `ImageOps.exif_transpose` removes it.

    Raises:
        UndecodableImage: The image is empty or larger than the limit, or its mode has no scale or no colors.
    """
    check_area(
        image.width * image.height, limits, plain=_is_plain_jpeg(image) or not isinstance(image, ImageFile.ImageFile)
    )
    try:
        if isinstance(image, JpegImageFile) and (data := _unread_bytes(image, limits)) is not None:
            return _decode_jpeg(data, image, limits, decode_size)
        pixels = _orient(_to_rgb(image), *_orientation(image))
        return DecodedImage(pixels, pixels.shape[:2])
    except UndecodableImage:
        raise
    except Exception as error:  # as in decode_file; a file that was opened is read only now
        raise UndecodableImage(_reason(error)) from error


def _unread_bytes(image: JpegImageFile, limits: DecodeLimits) -> bytes | None:
    """The file of an image whose pixels have not been loaded; None if they have, or if `draft` or `seek` were used."""
    file = image.fp
    if file is None or not image.tile or image.tile[0].offset or image.decoderconfig:
        return None
    position = file.seek(0, io.SEEK_CUR)
    file.seek(0)
    try:
        data = file.read(int(limits.max_megabytes * 1e6) + 1)
    finally:
        file.seek(position)
    _check_size(len(data), limits)
    return data


@cache
def check_decoder(reader: type[ImageFile.ImageFile]) -> None:
    """Decode a picture that Pillow writes; raises MachineError if that fails."""
    content = io.BytesIO()
    try:
        Image.new("RGB", (8, 8), "gray").save(content, reader.format)
        _decode(content.getvalue(), DEFAULT_LIMITS, None)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MachineError(
            f"the decoder of {reader.format} images does not work on this machine: {reason}",
            "install pillow and simplejpeg again",
        ) from error


def check_decoders() -> None:
    """Try the decoder of every format; raises MachineError if one of them does not work."""
    for reader in set(READERS.values()):
        check_decoder(reader)


def read_image_bytes(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """Return the bytes of a file. The size is checked before the file is read.

    Raises:
        UndecodableImage: The file cannot be read, or is larger than the limit.
        MachineError: No more files can be opened.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableImage("is not a file")
        _check_size(status.st_size, limits)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UndecodableImage(MISSING_FILE) from error
    except ValueError as error:
        raise UndecodableImage("has a name that is not possible for a file") from error
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise MachineError(f"cannot read {str(path)!r}: {error.strerror}") from error
        raise UndecodableImage(f"cannot be read: {error.strerror}") from error


def check_area(area: int, limits: DecodeLimits, *, plain: bool) -> None:
    """Raise UndecodableImage if an image has no pixels, or more than the limit, which is larger for plain JPEGs."""
    if area == 0:
        raise UndecodableImage("has no pixels")
    allowed = limits.max_megapixels / (1 if plain else MEMORY_FACTOR)
    if area / 1e6 > allowed:
        setting = f"{limits.setting}={limits.max_megapixels:g}"
        share = "" if plain else ", a fifth of it for all but 8-bit grey or RGB JPEGs"
        raise UndecodableImage(f"is {area / 1e6:,.4g} megapixels; the limit is {allowed:g} ({setting}{share})")


def read_recorded(root: Path, row: Row, *, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """Return the bytes of the image of a row, which must have the digest that was recorded when the data was split.

    Raises:
        UndecodableImage: The file is missing, cannot be read, or has changed; the message names its path.
    """
    path = root / row.path
    try:
        data = read_image_bytes(path, limits=limits)
    except UndecodableImage as error:
        hint = "if the data was moved, set data.root=... to its new folder" if error.reason == MISSING_FILE else None
        raise UndecodableImage(error.reason, name=repr(str(path)), hint=hint) from error
    if sha256_bytes(data) != row.sha256:
        raise UndecodableImage(
            "has changed since the data was split", name=repr(str(path)), hint="restore the file, or train again"
        )
    return data


def open_image(data: bytes, header: Header | None = None) -> ImageFile.ImageFile:
    """Open an image file; decodes no pixels.

    Args:
        data: Content of the file.
        header: Its header; None: it is read.

    Raises:
        UndecodableImage: The header is not that of an image.
        Exception: Pillow raises errors of many types on other damaged bytes.
    """
    header = header or read_header(data)
    # The reader is called directly because Image.open uses a pixel limit that is global to the process.
    image = _find_reader(data)(io.BytesIO(header.data))
    if image.width * image.height > header.area:
        raise UndecodableImage("is damaged")
    return image


def _find_reader(data: bytes) -> type[ImageFile.ImageFile]:
    return next(reader for magic, reader in READERS.items() if data.startswith(magic))


def _decode(data: bytes, limits: DecodeLimits, decode_size: DecodeSize | None) -> DecodedImage:
    _check_size(len(data), limits)
    header = read_header(data)
    check_area(header.area, limits, plain=data.startswith(JPEG))
    image = open_image(data, header)
    check_area(header.area, limits, plain=_is_plain_jpeg(image))
    if isinstance(image, JpegImageFile):
        return _decode_jpeg(data, image, limits, decode_size)
    damage = None
    if isinstance(image, PngImageFile) and has_wrong_checksum(header.data):
        damage = "has pixels with a wrong checksum"
    pixels = _orient(_to_rgb(image), *_orientation(image))
    return DecodedImage(pixels, pixels.shape[:2], damage)


def jpeg_quality(image: JpegImageFile) -> float | None:
    """Return the quality setting of the IJG encoder whose luminance table has the same mean; None without a table."""
    table = image.quantization.get(0)
    if not table:
        return None
    scale = 100 * sum(table) / IJG_LUMINANCE_SUM  # percent of the table of quality 50
    quality = 5000 / scale if scale > 100 else 100 - scale / 2
    return round(min(100.0, max(1.0, quality)), 1)


def _decode_jpeg(
    data: bytes, image: JpegImageFile, limits: DecodeLimits, decode_size: DecodeSize | None
) -> DecodedImage:
    """Decode a file that Pillow has opened as `image`."""
    if (scans := _count_scans(data, limits.max_scans)) > limits.max_scans:
        raise UndecodableImage(f"has {scans:,} scans; the limit is {limits.max_scans}")
    swap, flips = _orientation(image)
    size = (image.width, image.height) if swap else (image.height, image.width)
    stored = (image.height, image.width)
    if decode_size is not None:
        least = decode_size(size)
        stored = _reduced(stored, least[::-1] if swap else least)
    pixels, damage = _jpeg_pixels(data, image, stored)
    return DecodedImage(_orient(pixels, swap, flips), size, damage, jpeg_quality(image))


def _reduced(size: ImageSize, least: ImageSize) -> ImageSize:
    """Height and width after the largest reduction that keeps `least`.

    Both are multiples of the factor: otherwise the last row or column would cover pixels outside the image, and all
    others would be moved by a part of a pixel.
    """
    for factor in REDUCTIONS:
        if all(side % factor == 0 and side // factor >= needed for side, needed in zip(size, least, strict=True)):
            return size[0] // factor, size[1] // factor
    return size


def _jpeg_pixels(data: bytes, image: JpegImageFile, size: ImageSize) -> tuple[Pixels, str | None]:
    """Decode to RGB at `size`, with the warning of the decoder if there is one."""
    colorspace, channels = ("CMYK", 4) if image.mode == "CMYK" else ("RGB", 3)
    # A buffer of the size in the header, or of the reduced size: the decoder refuses to write more than that.
    buffer = np.empty((*size, channels), np.uint8)
    options = {"colorspace": colorspace, "buffer": buffer, "min_height": size[0], "min_width": size[1]}
    damage = None
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        message = str(error).splitlines()[0]
        if "premature end of jpeg file" in message.lower():
            raise UndecodableImage("is truncated") from error
        if any(text in message for text in ONLY_PILLOW):
            return _to_rgb(image), None
        pixels = simplejpeg.decode_jpeg(data, **options, strict=False)
        damage = f"is damaged: {message}"
    if colorspace == "CMYK":
        if image.tile[0].args and image.tile[0].args[0] == "CMYK;I":  # Adobe writes the inks inverted
            pixels = 255 - pixels
        pixels = np.array(Image.fromarray(pixels, "CMYK").convert("RGB"))
    return pixels, damage


def _check_size(size: int, limits: DecodeLimits) -> None:
    if size == 0:
        raise UndecodableImage("is empty")
    if size > limits.max_megabytes * 1e6:
        raise UndecodableImage(f"is {size / 1e6:,.4g} MB; the limit is {limits.max_megabytes:g}")


def _count_scans(data: bytes, limit: int) -> int:
    """The number of scans in a JPEG; up to `limit` an upper bound, which is fast to compute."""
    # As numbers of two bytes, from the first byte and from the second: faster than bytes.count.
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    bound = sum(int(np.count_nonzero(numbers == SCAN_NUMBER)) for numbers in pairs)
    if bound <= limit:
        return bound
    # The marker bytes may also occur in the payload of a segment, or after the image, as in motion photos of phones.
    scans, position = 0, 2
    while (marker := MARKER.search(data, position)) and marker[0] != END_OF_IMAGE:
        scans += marker[0] == START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an image is a JPEG that takes three bytes per pixel to decode: 8-bit gray or RGB, but not CMYK."""
    return isinstance(image, JpegImageFile) and image.mode in {"L", "RGB"}


def _to_rgb(image: Image.Image) -> Pixels:
    """Any mode to RGB: gray of 12 or 16 bits is scaled, transparency is put over white."""
    if image.mode in {"I", "F"}:
        raise UndecodableImage("has 32-bit pixels of unknown scale")
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImageFile):
        if any(value != UNSIGNED for value in _tag(image, TiffTag.SAMPLE_FORMAT, UNSIGNED)):
            raise UndecodableImage("has pixels that are not unsigned integers")
        bits = _tag(image, TiffTag.BITS_PER_SAMPLE, 1)[0]
        white_is_zero = _tag(image, TiffTag.PHOTOMETRIC, WHITE_IS_ZERO) == (WHITE_IS_ZERO,)
    image.load()
    if image.mode.startswith("I;16"):
        values, largest = np.asarray(image).astype(np.uint32), 2**bits - 1
        transparent = image.info.get("transparency")
        scaled = ((largest - values if white_is_zero else values) * 255 + largest // 2) // largest
        if isinstance(transparent, int):
            scaled[values == transparent] = 255
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", coloured.size, "white")
        image.paste(coloured, mask=coloured)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _tag(image: TiffImageFile, tag: TiffTag, default: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _orientation(image: Image.Image) -> tuple[bool, tuple[int, ...]]:
    """How the rotation of the camera is undone; see ORIENTATIONS."""
    upright: tuple[bool, tuple[int, ...]] = (False, ())
    if (exif := image.info.get("exif")) and not is_bounded_exif(exif):
        return upright
    try:
        # Pillow has already applied the orientation of a TIFF, and removed the tag.
        orientation = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # the pixels are valid even if EXIF is damaged; viewers show such a photo without rotation
        return upright
    return ORIENTATIONS.get(orientation, upright) if isinstance(orientation, int) else upright


def _orient(pixels: Pixels, swap: bool, flips: tuple[int, ...]) -> Pixels:
    """Undo the rotation of the camera in (H, W, 3)."""
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(pixels, flips))  # torch takes no arrays with negative strides


def _reason(error: Exception) -> str:
    """The meaning of a decoder's exception for a user."""
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than Pillow opens"
    if isinstance(error, MemoryError):
        return "needs more memory than is available"
    if any(text in str(error) for text in NOT_SUPPORTED):
        return "has a pixel format or compression that is not supported"
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "is truncated" if truncated else "is damaged"

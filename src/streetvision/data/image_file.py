"""Read image files to uint8 RGB arrays with Pillow, safely for untrusted files. Does not import torch.

The header is read first. No pixels are decoded before the format, the number of pixels and the number of scans are
known to be within the limits. Every format gives the same kind of array: the first frame, three channels, EXIF
orientation applied, transparency over white, 16-bit grey scaled to 8 bits. Colour profiles are not applied.

Shapes: H and W are pixels, after EXIF orientation.
"""

import io
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits

Pixels: TypeAlias = NDArray[np.uint8]
"""A decoded image, uint8 (H, W, 3), RGB."""
JpegDecoder: TypeAlias = Callable[[bytes], Pixels]
"""Decodes an 8-bit grey or RGB JPEG to the same pixels as Pillow."""

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

MEMORY_FACTOR = 5
"""Memory per pixel of other images relative to a plain JPEG, at least. Their pixel limit is smaller by this factor."""

START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Any JPEG marker except restart markers, which occur inside a scan; 0xff00 is an escaped byte of the scan."""

MISSING_FILE = "does not exist"
"""Reason of an image whose file is missing."""

TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323


class UndecodableImage(DataError):  # noqa: N818 (established name)
    """An image is rejected or cannot be decoded; `reason` completes the sentence "the image ..."."""

    def __init__(self, reason: str, *, name: str = "the image") -> None:
        super().__init__(f"{name} {reason}")
        self.reason = reason


def decode_pixels(
    data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_jpeg: JpegDecoder | None = None
) -> Pixels:
    """Decode one image file.

    Args:
        data: Content of the file.
        limits: Largest accepted image.
        decode_jpeg: A faster decoder than Pillow; None: Pillow.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UndecodableImage: The bytes are not a complete image within `limits`. No other error is raised.
    """
    try:
        image = _open(data, limits)
        pixels = decode_jpeg(data) if decode_jpeg and _is_plain_jpeg(image) else _decode_with_pillow(image)
        return _apply_orientation(pixels, image)
    except UndecodableImage:
        raise
    except Exception as error:  # on damaged bytes, decoders raise errors of nearly every type
        raise UndecodableImage(_reason(error)) from error


def read_pixels(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS, decode_jpeg: JpegDecoder | None = None) -> Pixels:
    """Decode the image file `path` to (H, W, 3) uint8 RGB.

    Raises:
        UndecodableImage: As `decode_pixels`; the message names the path.
    """
    try:
        return decode_pixels(read_image_bytes(path, limits=limits), limits=limits, decode_jpeg=decode_jpeg)
    except UndecodableImage as error:
        raise UndecodableImage(error.reason, name=repr(str(path))) from error


def read_image_bytes(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """Return the bytes of a file. The size is checked before the file is read.

    Raises:
        UndecodableImage: The file cannot be read, or is larger than the limit.
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
        raise UndecodableImage(f"cannot be read: {error.strerror}") from error


def find_reader(data: bytes) -> type[ImageFile.ImageFile] | None:
    """Return the reader for the first bytes of a file; None for a format that is not supported."""
    return next((reader for magic, reader in READERS.items() if data.startswith(magic)), None)


def _open(data: bytes, limits: DecodeLimits) -> ImageFile.ImageFile:
    """Read and check the header; decodes no pixels."""
    _check_size(len(data), limits)
    reader = find_reader(data)
    if reader is None:
        raise UndecodableImage("is not a JPEG, PNG, WebP, BMP, GIF or TIFF image")
    # The reader is called directly because Image.open uses a pixel limit that is global to the process.
    image = reader(io.BytesIO(data))
    megapixels = max(image.width * image.height, _tile_area(image)) / 1e6
    allowed = limits.max_megapixels / (1 if _is_plain_jpeg(image) else MEMORY_FACTOR)
    if megapixels > allowed:
        raise UndecodableImage(f"is {megapixels:,.4g} megapixels; the limit is {allowed:g}")
    if reader is JpegImageFile and (scans := _count_scans(data, limits.max_scans)) > limits.max_scans:
        raise UndecodableImage(f"has {scans:,} scans; the limit is {limits.max_scans}")
    return image


def _tile_area(image: ImageFile.ImageFile) -> int:
    """Pixels of one tile of a TIFF, else 0. A tile may be declared larger than the image and is decoded as a whole."""
    if not isinstance(image, TiffImageFile):
        return 0
    area: int = image.tag_v2.get(TIFF_TILE_WIDTH, 0) * image.tag_v2.get(TIFF_TILE_LENGTH, 0)
    return area


def _check_size(size: int, limits: DecodeLimits) -> None:
    if size == 0:
        raise UndecodableImage("is empty")
    if size > limits.max_megabytes * 1e6:
        raise UndecodableImage(f"is {size / 1e6:,.4g} MB; the limit is {limits.max_megabytes:g}")


def _count_scans(data: bytes, limit: int) -> int:
    """The number of scans in a JPEG; up to `limit` an upper bound, which is fast to compute."""
    bound = data.count(START_OF_SCAN)
    if bound <= limit:
        return bound
    # The marker bytes may also occur in the payload of a segment, or after the image, as in motion photos of phones.
    scans, position = 0, 2
    while (marker := MARKER.search(data, position)) and marker[0] != END_OF_IMAGE:
        scans += marker[0] == START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _is_plain_jpeg(image: ImageFile.ImageFile) -> bool:
    """Whether torchvision and Pillow decode this file to the same bits: 8-bit grey or RGB, but not CMYK."""
    return isinstance(image, JpegImageFile) and image.mode in {"L", "RGB"}


def _decode_with_pillow(image: Image.Image) -> Pixels:
    """Any mode to RGB: 16-bit grey is scaled, transparency is put over white."""
    if image.mode in {"I", "F"}:
        raise UndecodableImage("has 32-bit pixels of unknown scale")
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", coloured.size, "white")
        image.paste(coloured, mask=coloured)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _apply_orientation(pixels: Pixels, image: Image.Image) -> Pixels:
    """Undo the rotation of the camera in (H, W, 3)."""
    try:
        # Pillow has already applied the orientation of a TIFF, and removed the tag.
        orientation = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # the pixels are valid even if EXIF is damaged; viewers show such a photo without rotation
        return pixels
    swap, flips = ORIENTATIONS.get(orientation, (False, ())) if isinstance(orientation, int) else (False, ())
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(pixels, flips))  # torch takes no arrays with negative strides


def _reason(error: Exception) -> str:
    """The meaning of a decoder's exception for a user."""
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than Pillow opens"
    if isinstance(error, MemoryError):
        return "needs more memory than is available"
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "is truncated" if truncated else "is damaged"

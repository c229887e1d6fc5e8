"""Bytes to uint8 RGB tensors: safe for files from anywhere, and as quick as the format allows.

The header is read first, and nothing is unpacked before the format, the number of pixels and the number of scans are
known to be within limits. One image gives the same tensor on every path: one frame (the first), three channels, EXIF
orientation applied, transparency laid over white, 16-bit grey scaled to 8 bits. Colour profiles are not applied.

Legend: H and W are pixels, after orientation.
"""

import io
import re
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from streetvision.contracts.errors import DataError
from streetvision.data.config import DEFAULT_LIMITS, DecodeLimits

READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"GIF8": GifImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}
"""First bytes of a file -> what reads it. No other format is opened, whatever else Pillow knows."""

ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""EXIF orientation -> (swap H and W?, then the dimensions of (3, H, W) to flip). EXIF 2.32, tag 0x0112."""


HEAVIER = 5
"""How many times the memory of a plain JPEG's pixel the pixel of another image takes, at the least."""

START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Any JPEG marker but the restarts, which stand inside a scan; 0xff00 is an escaped byte of the scan."""

TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323


class UndecodableImage(DataError):  # noqa: N818 (it names the image, as the sentence it prints does)
    """An image that is refused or cannot be decoded; `reason` completes the sentence "the image ..."."""

    def __init__(self, reason: str, *, name: str = "the image") -> None:
        super().__init__(f"{name} {reason}")
        self.reason = reason


def decode_image(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> torch.Tensor:
    """Decode one image file.

    Returns (3, H, W) uint8 RGB, channels last in memory: the layout that `resize_square` is quickest on.
    Raises UndecodableImage, and nothing else, for bytes that are not a whole image within `limits`.
    """
    try:
        image = _open(data, limits)
        pixels = _decode_plain_jpeg(data) if _is_plain_jpeg(image) else _decode_through_pillow(image)
        return _upright(pixels, _orientation(image))
    except UndecodableImage:
        raise
    except Exception as error:  # on damaged bytes, decoders raise nearly every type there is
        raise UndecodableImage(_reason(error)) from error


def read_image(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> torch.Tensor:
    """Decode the image in `path` to (3, H, W) uint8 RGB; raises UndecodableImage, which names the path."""
    try:
        return decode_image(read_image_bytes(path, limits=limits), limits=limits)
    except UndecodableImage as error:
        raise UndecodableImage(error.reason, name=repr(str(path))) from error


def read_image_bytes(path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of `path`; raises UndecodableImage when it cannot be read or is over the limit, before reading it."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UndecodableImage("is not a file")
        _check_length(found.st_size, limits)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UndecodableImage("is not there") from error
    except ValueError as error:
        raise UndecodableImage("has a name that no file can have") from error
    except OSError as error:
        raise UndecodableImage(f"cannot be read: {error.strerror}") from error


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is read here."""
    return data.startswith(tuple(READERS))


def resize_square(image: torch.Tensor, size: int) -> torch.Tensor:
    """Squash a uint8 image (3, H, W) to (3, size, size): the evaluation preprocessing of every model here.

    Bilinear with antialiasing, because that is what the image processor shipped to the subnet's miner computes, so
    that a model meets the same pixels there as here. The aspect ratio is given up so that nothing is cut off.
    """
    resized: torch.Tensor = F.resize(image, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def _open(data: bytes, limits: DecodeLimits) -> ImageFile.ImageFile:
    """Read the header with the one reader that may have it; unpacks no pixels."""
    _check_length(len(data), limits)
    reader = next((reader for magic, reader in READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise UndecodableImage("is not a JPEG, PNG, WebP, BMP, GIF or TIFF image")
    # The reader is called by itself because Image.open warns by a limit that is global to the process.
    image = reader(io.BytesIO(data))
    megapixels = max(image.width * image.height, _tile_area(image)) / 1e6
    allowed = limits.max_megapixels / (1 if _is_plain_jpeg(image) else HEAVIER)
    if megapixels > allowed:
        raise UndecodableImage(f"is {megapixels:,.4g} megapixels; the limit is {allowed:g}")
    if reader is JpegImageFile and (scans := _count_scans(data, limits.max_scans)) > limits.max_scans:
        raise UndecodableImage(f"has {scans:,} scans; the limit is {limits.max_scans}")
    return image


def _tile_area(image: ImageFile.ImageFile) -> int:
    """Pixels of one tile of a TIFF, which may claim to be larger than the image and is unpacked whole; else 0."""
    if not isinstance(image, TiffImageFile):
        return 0
    area: int = image.tag_v2.get(TIFF_TILE_WIDTH, 0) * image.tag_v2.get(TIFF_TILE_LENGTH, 0)
    return area


def _check_length(length: int, limits: DecodeLimits) -> None:
    if length == 0:
        raise UndecodableImage("is empty")
    if length > limits.max_megabytes * 1e6:
        raise UndecodableImage(f"is {length / 1e6:,.4g} MB; the limit is {limits.max_megabytes:g}")


def _count_scans(data: bytes, enough: int) -> int:
    """The number of scans in a JPEG, counted exactly only where a quick upper bound exceeds `enough`."""
    bound = data.count(START_OF_SCAN)
    if bound <= enough:
        return bound
    # The two bytes may also stand inside a segment's payload or behind the image, as in a phone's motion photos.
    scans, position = 0, 2
    while (marker := MARKER.search(data, position)) and marker[0] != END_OF_IMAGE:
        scans += marker[0] == START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _is_plain_jpeg(image: ImageFile.ImageFile) -> bool:
    """Whether torchvision and Pillow agree on this file bit for bit: 8-bit grey or RGB; CMYK is read otherwise."""
    return isinstance(image, JpegImageFile) and image.mode in {"L", "RGB"}


def _decode_plain_jpeg(data: bytes) -> torch.Tensor:
    # Deprecated since torchvision 0.29 but twice as quick as Pillow on a phone's photo; when it goes, so does this.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: torch.Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    return pixels


def _decode_through_pillow(image: ImageFile.ImageFile) -> torch.Tensor:
    return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey scaled, transparency laid over white."""
    if image.mode in {"I", "F"}:
        raise UndecodableImage("has 32-bit pixels, whose scale is not known")
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", coloured.size, "white")
        image.paste(coloured, mask=coloured)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied; TIFF pixels arrive upright, and Pillow clears the tag."""
    try:
        orientation = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # damaged EXIF says nothing about the pixels, and every viewer shows such a photo as it lies
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Undo the camera's rotation of (3, H, W)."""
    swap, flips = ORIENTATIONS.get(orientation, (False, ()))
    if swap:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(flips) if flips else pixels


def _reason(error: Exception) -> str:
    """What a decoder's exception means to a person."""
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than Pillow opens"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "is truncated" if cut_off else "is damaged"

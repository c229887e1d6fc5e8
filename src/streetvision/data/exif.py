"""When and where a photograph was taken, as its camera wrote it down."""

import io
import math
from datetime import datetime
from typing import Any

from PIL.ExifTags import GPS, IFD, Base
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from streetvision.data.decode import READERS
from streetvision.data.grouping.geo import LATITUDE, LONGITUDE, TAKEN


def read_exif(data: bytes) -> dict[str, str]:
    """The columns taken (ISO 8601, local time), latitude and longitude (degrees), those that the file knows.

    Only the header is read. What is damaged, impossible or not there is left out.
    """
    reader = next((reader for magic, reader in READERS.items() if data.startswith(magic)), None)
    if reader is None:
        return {}
    try:
        exif = _of_header(reader(io.BytesIO(data)))
        details, gps = exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)
    except Exception:  # damaged EXIF says nothing, and decoders raise nearly every type there is on it
        return {}
    columns = {}
    if taken := _time(details.get(Base.DateTimeOriginal) or exif.get(Base.DateTime)):
        columns[TAKEN] = taken
    north = _degrees(gps, GPS.GPSLatitude, GPS.GPSLatitudeRef, most=90, negative="S")
    east = _degrees(gps, GPS.GPSLongitude, GPS.GPSLongitudeRef, most=180, negative="W")
    if north is not None and east is not None and (north, east) != (0, 0):  # 0, 0 is what cameras write without a fix
        columns |= {LATITUDE: f"{north:.7f}", LONGITUDE: f"{east:.7f}"}
    return columns


def _of_header(image: ImageFile) -> Exif:
    """The EXIF that stands before the pixels; of a PNG, Pillow would unpack the pixels to look behind them."""
    if not isinstance(image, PngImageFile):
        return image.getexif()
    exif = Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _time(value: object) -> str | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _degrees(gps: dict[int, Any], value: int, side: int, *, most: float, negative: str) -> float | None:
    try:
        degrees, minutes, seconds = (float(part) for part in gps[value])
        size = degrees + minutes / 60 + seconds / 3600
        sign = -1.0 if str(gps[side]).strip("\0 ").upper() == negative else 1.0
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return sign * size if math.isfinite(size) and 0 <= size <= most else None

"""Time and position of a photograph, from its EXIF metadata."""

import math
from datetime import datetime
from typing import Any

from PIL.ExifTags import GPS, IFD, Base
from PIL.Image import Exif
from PIL.PngImagePlugin import PngImageFile

from streetvision.data.grouping.geo import LATITUDE, LONGITUDE, TAKEN
from streetvision.data.image_file import open_image
from streetvision.data.image_header import is_bounded_exif


def read_exif(data: bytes) -> dict[str, str]:
    """Return the columns taken (ISO 8601, local time), latitude and longitude (degrees), if the file has them.

    Only the header is read. Damaged or impossible values are left out.
    """
    try:
        image = open_image(data)
        if (raw := image.info.get("exif")) and not is_bounded_exif(raw):
            return {}
        if isinstance(image, PngImageFile):
            # getexif would decode the pixels of a PNG to search for EXIF after them.
            exif = Exif()
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        details, gps = exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)
    except Exception:  # on damaged EXIF, Pillow raises errors of many types
        return {}
    columns = {}
    if taken := _time(details.get(Base.DateTimeOriginal) or exif.get(Base.DateTime)):
        columns[TAKEN] = taken
    north = _degrees(gps, GPS.GPSLatitude, GPS.GPSLatitudeRef, maximum=90, negative="S")
    east = _degrees(gps, GPS.GPSLongitude, GPS.GPSLongitudeRef, maximum=180, negative="W")
    # Cameras write 0, 0 if they have no position.
    if north is not None and east is not None and (north, east) != (0, 0):
        columns |= {LATITUDE: f"{north:.7f}", LONGITUDE: f"{east:.7f}"}
    return columns


def _time(value: object) -> str | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _degrees(gps: dict[int, Any], value_tag: int, reference_tag: int, *, maximum: float, negative: str) -> float | None:
    """Decimal degrees; None if the value is missing, damaged or impossible."""
    try:
        degrees, minutes, seconds = (float(part) for part in gps[value_tag])
        size = degrees + minutes / 60 + seconds / 3600
        sign = -1.0 if str(gps[reference_tag]).strip("\0 ").upper() == negative else 1.0
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return sign * size if math.isfinite(size) and 0 <= size <= maximum else None

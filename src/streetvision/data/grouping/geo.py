"""Photographs taken near each other, by GPS and, if asked, by time: they show one place and belong together."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from streetvision.contracts.errors import DataError

LATITUDE, LONGITUDE, TAKEN = "latitude", "longitude", "taken"
"""Columns: degrees north, degrees east, and local time in ISO 8601; `streetvision data import` makes them of EXIF."""
EARTH_RADIUS = 6_371_000.0
"""Metres."""


def geo_keys(columns: Sequence[Mapping[str, str]], *, metres: float, hours: float | None) -> list[int | None]:
    """One key a row, equal for rows that a chain of neighbours joins; None for a row that has no position.

    Neighbours are at most `metres` apart and, unless `hours` is None, taken at most `hours` apart: a time that is not
    known separates nothing. Cells of a grid would part neighbours on either side of a border.
    Raises DataError when no row has a position, and for a position or time that cannot be read.
    """
    located = [number for number, row in enumerate(columns) if row.get(LATITUDE) and row.get(LONGITUDE)]
    if not located:
        raise DataError(
            f"data.grouping.by asks for place, and no row has the columns {LATITUDE} and {LONGITUDE}",
            "import the images with `streetvision data import`, which reads EXIF, or leave place out",
        )
    points = np.array([_point(columns[number]) for number in located])
    chord = 2 * np.sin(min(metres / EARTH_RADIUS, np.pi) / 2)
    pairs = cKDTree(points).query_pairs(chord, output_type="ndarray")
    if hours is not None:
        times = np.array([_seconds(columns[number]) for number in located])
        apart = np.abs(times[pairs[:, 0]] - times[pairs[:, 1]])
        pairs = pairs[~(apart > hours * 3600)]
    keys: list[int | None] = [None] * len(columns)
    for number, place in zip(located, _joined(pairs, len(located)), strict=True):
        keys[number] = place
    return keys


def _joined(pairs: npt.NDArray[np.intp], n: int) -> list[int]:
    graph = coo_array((np.ones(len(pairs), dtype=np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    places: list[int] = connected_components(graph, directed=False)[1].tolist()
    return places


def _point(row: Mapping[str, str]) -> tuple[float, float, float]:
    """Where the row was taken, on the unit sphere."""
    try:
        latitude, longitude = float(row[LATITUDE]), float(row[LONGITUDE])
    except ValueError as error:
        raise DataError(f"{row[LATITUDE]!r}, {row[LONGITUDE]!r} is not a position in degrees") from error
    if not (abs(latitude) <= 90 and abs(longitude) <= 360):
        raise DataError(f"{latitude}, {longitude} is not a position in degrees north and east")
    north, east = np.radians([latitude, longitude])
    return float(np.cos(north) * np.cos(east)), float(np.cos(north) * np.sin(east)), float(np.sin(north))


def _seconds(row: Mapping[str, str]) -> float:
    """When the row was taken, in seconds; NaN where that is not known."""
    if not row.get(TAKEN):
        return float("nan")
    try:
        # A camera's clock knows no zone: what is written without one is compared as it stands.
        taken = datetime.fromisoformat(row[TAKEN]).replace(tzinfo=None)
    except ValueError as error:
        raise DataError(f"{row[TAKEN]!r} in the column {TAKEN!r} is not a time in ISO 8601") from error
    return (taken - datetime(1970, 1, 1)).total_seconds()

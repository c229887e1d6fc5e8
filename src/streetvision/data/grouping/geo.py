"""Groups of photographs taken near each other, by GPS position and optionally by time."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from streetvision.contracts.errors import DataError
from streetvision.contracts.split_contracts import Row
from streetvision.data.grouping.connected_components import components_of_pairs
from streetvision.data.records import parse_group

LATITUDE, LONGITUDE, TAKEN = "latitude", "longitude", "taken"
"""Columns: degrees north, degrees east, and local time in ISO 8601. `streetvision data import` reads them from EXIF."""
EARTH_RADIUS = 6_371_000.0
"""Metres."""
POSITION_HINT = "correct it, or leave it empty if it is unknown"
MAX_PAIRS = 2**21
"""Number of neighboring pairs in memory at a time; more only if one photograph has more neighbors."""


def has_position(row: Row) -> bool:
    """Whether a row has a latitude and a longitude, valid or not."""
    return all(parse_group(row.columns.get(name)) is not None for name in (LATITUDE, LONGITUDE))


def geo_keys(rows: Sequence[Row], *, metres: float, hours: float | None) -> list[int | None]:
    """Return one key per row. Rows have equal keys if a chain of neighbors connects them; None: no position.

    Neighbors are at most `metres` apart. If `hours` is given, they were also taken at most `hours` apart; an unknown
    time is within any limit. Texts such as nan and n/a are unknown positions and times. Distances are used because a
    grid would separate neighbors on both sides of a border.

    Raises:
        DataError: No row has a position, or a position or time is not valid.
    """
    located = [number for number, row in enumerate(rows) if has_position(row)]
    if not located:
        raise DataError(
            f"data.grouping.by contains place, but no row has the columns {LATITUDE} and {LONGITUDE}",
            "import the images with `streetvision data import`, which reads EXIF, or remove place",
        )
    # Positions are points on the unit sphere, where the distance of two points is the chord of their arc.
    points = np.array([_unit_vector(rows[number]) for number in located])
    chord = 2 * np.sin(min(metres / EARTH_RADIUS, np.pi) / 2)
    times = np.array([float("nan") if hours is None else _seconds(rows[number]) for number in located])
    # Photographs of equal position and time are one node: a fixed camera has many.
    known = np.column_stack([points, np.nan_to_num(times, nan=np.inf)])
    _, first, node_of = np.unique(known, axis=0, return_index=True, return_inverse=True)
    times, component_of = times[first], np.arange(len(first))
    for pairs in _neighbours(points[first], chord):
        if hours is not None:
            time_difference = np.abs(times[pairs[:, 0]] - times[pairs[:, 1]])
            pairs = pairs[~(time_difference > hours * 3600)]  # NaN, an unknown time, is not larger
        component_of = components_of_pairs(component_of[pairs], len(first))[component_of]
    keys: list[int | None] = [None] * len(rows)
    node_of = node_of.reshape(-1)  # NumPy 2.0 has another shape than later versions
    for number, component in zip(located, component_of[node_of].tolist(), strict=True):
        keys[number] = component
    return keys


def _neighbours(points: npt.NDArray[np.float64], distance: float) -> Iterator[npt.NDArray[np.int64]]:
    """All pairs (P, 2) of points (N, 3) that are at most `distance` apart, in blocks of at most MAX_PAIRS."""
    ends = np.cumsum(cKDTree(points).query_ball_point(points, distance, return_length=True))
    start = 0
    while start < len(points):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + MAX_PAIRS, side="right")))
        block, rest = cKDTree(points[start:end]), cKDTree(points[start:])
        found = block.sparse_distance_matrix(rest, distance, output_type="ndarray")
        yield np.stack([found["i"], found["j"]], axis=1) + start
        start = end


def _unit_vector(row: Row) -> tuple[float, float, float]:
    """The position of the row on the unit sphere."""
    given = f"{row.columns[LATITUDE]!r}, {row.columns[LONGITUDE]!r}"
    try:
        latitude, longitude = float(row.columns[LATITUDE]), float(row.columns[LONGITUDE])
    except ValueError as error:
        raise DataError(f"{row.path}: {given} is not a position in degrees", POSITION_HINT) from error
    if not (abs(latitude) <= 90 and abs(longitude) <= 360):
        raise DataError(f"{row.path}: {given} is not a position in degrees north and east", POSITION_HINT)
    north, east = np.radians([latitude, longitude])
    return float(np.cos(north) * np.cos(east)), float(np.cos(north) * np.sin(east)), float(np.sin(north))


def _seconds(row: Row) -> float:
    """The time of the row in seconds; NaN if it is unknown."""
    text = parse_group(row.columns.get(TAKEN))
    if text is None:
        return float("nan")
    try:
        # Cameras do not record a time zone, so local times are compared.
        taken = datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError as error:
        raise DataError(f"{row.path}: {text!r} in the column {TAKEN!r} is not a time in ISO 8601") from error
    return (taken - datetime(1970, 1, 1)).total_seconds()

"""Slices of a test set, by the values of an index column or by the thirds of a quantity."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streetvision.eval.counts import FloatArray

MAX_VALUES = 12
"""Values of a column with a slice each; rarer values share one slice."""
MISSING = "not given"
THIRDS = ("lowest third", "middle third", "highest third")


class Part(NamedTuple):
    """Some of the rows."""

    column: str
    value: str
    """What the rows have in common, for a reader."""
    rows: NDArray[np.intp]
    """Positions, ascending."""


def parts_of_column(column: str, values: Sequence[str | None]) -> list[Part]:
    """The rows (N,) by value of an index column. Columns with many different numbers are split by thirds.

    Returns:
        One part per value, the most frequent first. Empty if all values are equal, or if almost all are different,
        as in an identifier.
    """
    given = [value for value in values if value is not None]
    n_distinct = len(set(given))
    if n_distinct > MAX_VALUES and (numbers := _as_numbers(values)) is not None:
        return parts_of_quantity(column, numbers)
    if len(set(values)) < 2 or (n_distinct > MAX_VALUES and n_distinct > len(given) / 2):
        return []
    ranked = [value for value, _ in Counter(given).most_common()]
    shown = ranked if n_distinct <= MAX_VALUES else ranked[: MAX_VALUES - 1]
    # Map every rarer value to one common name.
    name_of = {value: value for value in shown} | {
        value: f"{n_distinct - len(shown)} others" for value in ranked[len(shown) :]
    }
    names = np.array([MISSING if value is None else name_of[value] for value in values], dtype=object)
    order = [*shown, *sorted(set(names) - set(shown))]
    return [Part(column, name, np.flatnonzero(names == name)) for name in order]


def parts_of_quantity(
    column: str, values: FloatArray, *, unit: str = "", names: tuple[str, str, str] = THIRDS
) -> list[Part]:
    """The rows by thirds of a quantity (N,), nan where unknown; empty if all known values are equal.

    Equal values stay together, so the thirds may differ in size.
    """
    known = values[np.isfinite(values)]
    if known.size == 0 or known.min() == known.max():
        return []
    low, high = np.quantile(known, [1 / 3, 2 / 3], method="inverted_cdf")
    first, second = _text(float(low)), _text(float(high))
    ranges = (f"up to {first}{unit}", f"above {first} up to {second}{unit}", f"above {second}{unit}")
    masks = (values <= low, (values > low) & (values <= high), values > high)
    thirds = [
        Part(column, f"{name}: {description}", np.flatnonzero(mask))
        for name, description, mask in zip(names, ranges, masks, strict=True)
        if mask.any()
    ]
    unknown = np.flatnonzero(~np.isfinite(values))
    return [*thirds, Part(column, MISSING, unknown)] if unknown.size else thirds


def _text(number: float) -> str:
    """Three digits, and all digits before the point."""
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"


def _as_numbers(values: Sequence[str | None]) -> FloatArray | None:
    """The column as numbers, nan where nothing is given; None if a value is not a number."""
    try:
        return np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None

"""Parts of a test set that are worth a look of their own: by a word of the index, or by thirds of a quantity."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streetvision.eval.counts import FloatArray

MOST_VALUES = 12
"""Words of a column that are shown apart; rarer ones stand together."""
NOT_GIVEN = "not given"
THIRDS = ("lowest third", "middle third", "highest third")


class Part(NamedTuple):
    """Some of the rows."""

    column: str
    value: str
    """What its rows have in common, as a person would say it."""
    rows: NDArray[np.intp]
    """Positions, rising."""


def parts_of_column(column: str, values: Sequence[str | None]) -> list[Part]:
    """The rows by what a column of the index says of them; numbers of many values by thirds.

    Nothing for a column that says the same of every row, or something else of almost every one: an identifier.
    """
    given = [value for value in values if value is not None]
    distinct = len(set(given))
    if distinct > MOST_VALUES and (numbers := _as_numbers(values)) is not None:
        return parts_of_quantity(column, numbers)
    if len(set(values)) < 2 or (distinct > MOST_VALUES and distinct > len(given) / 2):
        return []
    ranked = [value for value, _ in Counter(given).most_common()]
    shown = ranked if distinct <= MOST_VALUES else ranked[: MOST_VALUES - 1]
    named = {value: value for value in shown} | {
        value: f"{distinct - len(shown)} others" for value in ranked[len(shown) :]
    }
    words = np.array([NOT_GIVEN if value is None else named[value] for value in values], dtype=object)
    order = [*shown, *sorted(set(words) - set(shown))]
    return [Part(column, word, np.flatnonzero(words == word)) for word in order]


def parts_of_quantity(
    column: str, values: FloatArray, *, unit: str = "", names: tuple[str, str, str] = THIRDS
) -> list[Part]:
    """The rows by thirds of a quantity (N,), nan where it is not known; nothing where it is the same everywhere.

    Equal values stay together, so the thirds need not be of one size.
    """
    known = values[np.isfinite(values)]
    if known.size == 0 or known.min() == known.max():
        return []
    low, high = np.quantile(known, [1 / 3, 2 / 3], method="inverted_cdf")
    spans = (f"up to {low:.3g}{unit}", f"above {low:.3g} up to {high:.3g}{unit}", f"above {high:.3g}{unit}")
    masks = (values <= low, (values > low) & (values <= high), values > high)
    thirds = [
        Part(column, f"{name}: {span}", np.flatnonzero(mask))
        for name, span, mask in zip(names, spans, masks, strict=True)
        if mask.any()
    ]
    unknown = np.flatnonzero(~np.isfinite(values))
    return [*thirds, Part(column, NOT_GIVEN, unknown)] if unknown.size else thirds


def _as_numbers(values: Sequence[str | None]) -> FloatArray | None:
    """The column as numbers, nan where nothing is given; None where a value is no number."""
    try:
        return np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None

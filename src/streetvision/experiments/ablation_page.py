"""The table of an ablation: Markdown for people, CSV for others."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from streetvision.experiments.comparison import Comparison, Row

TITLES = {"mcc": "MCC", "ece": "ECE", "reward": "reward", "cost": "cost"}
"""Quantity -> its name in the table."""


def as_markdown(rows: Sequence[Row], how: Comparison, looks: Mapping[str, int]) -> str:
    """A row for each quantity of each pair, and what has to be known to read it."""
    lines = [*_reading(rows, how, looks), ""]
    lines += ["| data | pair | | a | b | difference | over splits | over images | specification |", "|---" * 9 + "|"]
    before: tuple[str, str] | None = None
    for row in rows:
        here = (row.data, row.pair)
        name = here if here != before else ("", "")
        before = here
        cells = [*name, TITLES[row.quantity], *_values(row), row.expected or ""]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = dict.fromkeys(f"{row.pair} on {row.data}, {why}" for row in rows for why in row.missing)
    lines += ["", *(f"Left out: {one}." for one in left_out)] if left_out else []
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The same without rounding; ends of intervals are columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = [f.name for f in fields(Row) if f.name not in ("over_splits", "over_images", "missing")]
    writer.writerow([*plain, "splits_low", "splits_high", "images_low", "images_high", "missing"])
    for row in rows:
        ends = [*(row.over_splits or ("", "")), *(row.over_images or ("", ""))]
        writer.writerow([*(getattr(row, name) for name in plain), *ends, "; ".join(row.missing)])
    return text.getvalue()


def summary_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Pair and data set, and what came of them, for a terminal."""
    for row in rows:
        if row.quantity == "mcc":
            here = [other for other in rows if (other.data, other.pair) == (row.data, row.pair)]
            told = [
                f"{TITLES[one.quantity]} {_difference(one)}{'*' if one.shown else ''}" for one in here if one.splits
            ]
            yield row.pair, f"{row.data}: " + (", ".join(told) or "nothing was measured")


def _reading(rows: Sequence[Row], how: Comparison, looks: Mapping[str, int]) -> Iterator[str]:
    splits = sorted({row.splits for row in rows if row.splits})
    counted = " to ".join(map(str, dict.fromkeys([splits[0], splits[-1]]))) if splits else "no"
    yield (
        f"Each difference is b less a on the same VAL_TEST, mean over {counted} splits of the data; of cost b over a. "
        f"Both intervals are at {how.each:.2%}, so that all {how.comparisons} of one quantity hold at once with "
        f"{how.level:.0%} (Bonferroni). Bold: the interval over splits leaves out that there is no difference."
    )
    if looks:
        most, least = max(looks.values()), min(looks.values())
        often = str(most) if most == least else f"{least} to {most}"
        yield (
            f"Each VAL_TEST was looked at {often} times for this: what wins here is to be judged on other images "
            "before its figure is believed."
        )


def _values(row: Row) -> list[str]:
    if row.a is None or row.b is None:
        return ["", "", "not measured", "", ""]
    form = "{:.0f} s" if row.quantity == "cost" else "{:.3f}"
    difference = _difference(row)
    ends = [_ends(row, row.over_splits), _ends(row, row.over_images)]
    return [form.format(row.a), form.format(row.b), f"**{difference}**" if row.shown else difference, *ends]


def _difference(row: Row) -> str:
    assert row.difference is not None
    return f"{row.difference:.2f} times" if row.quantity == "cost" else f"{row.difference:+.3f}"


def _ends(row: Row, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    form = "{:.2f}" if row.quantity == "cost" else "{:+.3f}"
    return f"[{form.format(ends[0])}, {form.format(ends[1])}]"

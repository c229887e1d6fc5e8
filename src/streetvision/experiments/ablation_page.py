"""The table of an ablation: Markdown for people, CSV for programs."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from streetvision.eval.intervals import level_text
from streetvision.experiments.comparison import ComparisonSettings, Row

TITLES = {"mcc": "MCC", "ece": "ECE", "reward": "reward", "cost": "cost"}
"""Quantity -> its name in the table."""


def as_markdown(rows: Sequence[Row], settings: ComparisonSettings, test_accesses: Mapping[str, int]) -> str:
    """A row for each quantity of each pair, below what a reader has to know."""
    splits = sorted({row.splits for row in rows if row.splits})
    n_splits = " to ".join(map(str, dict.fromkeys([splits[0], splits[-1]]))) if splits else "no"
    lines = [
        f"Each difference is variant minus baseline on the same VAL_TEST, mean over {n_splits} splits of the data; "
        f"for cost it is variant divided by baseline. Both intervals are at {settings.level_of_each:.2%}, so that all "
        f"{settings.comparisons} intervals of one quantity hold at once with {level_text(settings.confidence_level)} "
        '(Bonferroni). Bold: the interval over splits excludes "no difference".'
    ]
    if test_accesses:
        counts = " to ".join(map(str, dict.fromkeys([min(test_accesses.values()), max(test_accesses.values())])))
        lines.append(
            f"Each VAL_TEST was accessed {counts} times for this table: confirm the best row on other images "
            "before using its figure."
        )
    lines += [
        "",
        "| data | pair | | baseline | variant | difference | over splits | over images | specification |",
        "|---" * 9 + "|",
    ]
    previous = ("", "")
    for row in rows:
        name = (row.data, row.pair)
        cells = [*(name if name != previous else ("", "")), TITLES[row.quantity], *_values(row), row.expected or ""]
        lines.append(f"| {' | '.join(cells)} |")
        previous = name
    reasons = left_out(rows)
    lines += ["", *(f"Left out: {reason}." for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


def left_out(rows: Sequence[Row]) -> list[str]:
    """The splits that are left out, each once, with the reason."""
    return list(dict.fromkeys(f"{row.pair} on {row.data}, {reason}" for row in rows for reason in row.missing))


def as_csv(rows: Sequence[Row]) -> str:
    """The same without rounding; the ends of intervals are columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = [f.name for f in fields(Row) if f.name not in ("split_interval", "image_interval", "missing")]
    writer.writerow([*plain, "splits_low", "splits_high", "images_low", "images_high", "missing"])
    for row in rows:
        ends = [*(row.split_interval or ("", "")), *(row.image_interval or ("", ""))]
        writer.writerow([*(getattr(row, name) for name in plain), *ends, "; ".join(row.missing)])
    return text.getvalue()


def summary_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(pair, its differences on one data set) for the terminal."""
    for row in rows:
        if row.quantity == "mcc":
            measured = [
                f"{TITLES[other.quantity]} {_difference(other)}{'*' if other.significant else ''}"
                for other in rows
                if (other.data, other.pair) == (row.data, row.pair) and other.splits
            ]
            yield row.pair, f"{row.data}: " + (", ".join(measured) or "nothing was measured")


def _values(row: Row) -> list[str]:
    if row.baseline is None or row.variant is None:
        return ["", "", "not measured", "", ""]
    form = "{:.0f} s" if row.quantity == "cost" else "{:.3f}"
    difference = f"**{_difference(row)}**" if row.significant else _difference(row)
    intervals = [_interval(row, ends) for ends in (row.split_interval, row.image_interval)]
    return [form.format(row.baseline), form.format(row.variant), difference, *intervals]


def _difference(row: Row) -> str:
    assert row.difference is not None
    return f"{row.difference:.2f} times" if row.quantity == "cost" else f"{row.difference:+.3f}"


def _interval(row: Row, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    form = "{:.2f}" if row.quantity == "cost" else "{:+.3f}"
    return f"[{form.format(ends[0])}, {form.format(ends[1])}]"

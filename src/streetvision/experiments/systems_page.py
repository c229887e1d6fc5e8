"""The result of a comparison of systems: Markdown for people, CSV and JSON for programs, and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streetvision.eval.bootstrap import Difference
from streetvision.eval.figures import BLUE, GRAY, GREEN, INK, ORANGE, new_figure
from streetvision.eval.intervals import Interval

METRICS = {"mcc": "MCC", "roc_auc": "ROC-AUC", "ece": "ECE"}
"""Metric -> its title in the table."""
MARKERS = "os^D"
COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", INK, GRAY)
PLOT_HEIGHT = 3.6
"""Inches of the plot of one data set."""
LEGEND_LINE = 0.2
"""Inches of one line of the legend, which has two systems."""


@dataclass(frozen=True)
class SystemRow:
    """One system on one data set."""

    data: str
    system: str
    images: int
    positives: int
    metrics: Mapping[str, Interval] | None = None
    """By name, over the images of all folds; None if a fold failed."""
    difference: Difference | None = None
    """MCC minus that of the first system; None for the first system, and where that has no result."""
    minutes: float | None = None
    """Mean time of a fold."""
    memory: float | None = None
    """Largest peak memory of a fold in GB."""
    missing: str | None = None
    """Why there is no result."""

    @property
    def summary(self) -> str:
        """The result in a line."""
        if self.metrics is None:
            return f"no result: {self.missing}"
        minutes = "" if self.minutes is None else f", {self.minutes:.1f} min per fold"
        return f"MCC {_interval(self.metrics['mcc'])}, ROC-AUC {self.metrics['roc_auc'].estimate:.3f}{minutes}"


def as_markdown(rows: Sequence[SystemRow], *, folds: int) -> str:
    """Return the table, below what a reader has to know."""
    lines = [
        f"Each image is predicted once, by a model that was trained on the other {folds - 1} of {folds} folds of whole "
        "groups; all systems have the same folds. Intervals at 95 %, from resampled groups. Differences are paired: "
        "the system's MCC minus that of the first; there are none if the first has no result. Minutes are CPU time, on "
        "a GPU wall time, of training and prediction for one fold.",
        "",
        "| data | system | MCC | difference | ROC-AUC | ECE | minutes | memory |",
        "|---" * 8 + "|",
    ]
    previous = ""
    for row in rows:
        data = f"{row.data}: {row.images:,} images, {row.positives:,} positive" if row.data != previous else ""
        previous = row.data
        if row.metrics is None:
            lines.append(f"| {data} | {row.system} | no result: {row.missing} |" + " |" * 5)
            continue
        cells = [
            data,
            row.system,
            _interval(row.metrics["mcc"]),
            "" if row.difference is None else _difference(row.difference),
            f"{row.metrics['roc_auc'].estimate:.3f}",
            f"{row.metrics['ece'].estimate:.3f}",
            "" if row.minutes is None else f"{row.minutes:.1f}",
            "" if row.memory is None else f"{row.memory:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[SystemRow]) -> dict[str, object]:
    """Return all figures without rounding."""
    return {"rows": [_plain(row) for row in rows]}


def as_csv(rows: Sequence[SystemRow]) -> str:
    """Return all figures without rounding, one line for each row."""
    text = io.StringIO()
    plain = [_plain(row) for row in rows]
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in plain for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return text.getvalue()


def minutes_plot(rows: Sequence[SystemRow]) -> bytes:
    """Return a picture of MCC against minutes, one plot for each data set."""
    from matplotlib.ticker import LogLocator, NullLocator

    shown = [row for row in rows if row.metrics is not None and row.minutes is not None]
    names = list(dict.fromkeys(row.data for row in shown))
    systems = list(dict.fromkeys(row.system for row in rows))
    height = PLOT_HEIGHT * max(1, len(names)) + LEGEND_LINE * -(-len(systems) // 2)
    with new_figure("MCC and time of training", height) as (figure, png):
        marks = {}
        if names:
            plots = figure.subplots(len(names), 1, squeeze=False)[:, 0]
            for axes, name in zip(plots, names, strict=True):
                for row in (row for row in shown if row.data == name):
                    assert row.metrics is not None
                    mcc, (turn, color) = row.metrics["mcc"], divmod(systems.index(row.system), len(COLORS))
                    marks[row.system] = axes.errorbar(
                        [row.minutes],
                        [mcc.estimate],
                        yerr=[[mcc.estimate - mcc.low], [mcc.high - mcc.estimate]],
                        color=COLORS[color],
                        marker=MARKERS[turn % len(MARKERS)],
                        capsize=3,
                    )
                axes.set_title(name, loc="left", fontsize=11)
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_locator(NullLocator())
                axes.margins(x=0.1)
                axes.set_ylabel("MCC")
            plots[-1].set_xlabel("minutes for a fold (CPU time; on a GPU wall time)")
            figure.legend(
                [marks[system] for system in systems if system in marks],
                [system for system in systems if system in marks],
                loc="outside lower left",
                ncols=2,
                fontsize=9,
                frameon=False,
            )
    return png.getvalue()


def _plain(row: SystemRow) -> dict[str, object]:
    plain: dict[str, object] = {
        "data": row.data,
        "system": row.system,
        "images": row.images,
        "positives": row.positives,
        "minutes": row.minutes,
        "memory_gb": row.memory,
        "missing": row.missing,
    }
    figures: dict[str, Interval | None] = {name: (row.metrics or {}).get(name) for name in METRICS}
    figures["mcc_difference"] = row.difference
    for name, figure in figures.items():
        for part in ("estimate", "low", "high"):
            plain[name if part == "estimate" else f"{name}_{part}"] = None if figure is None else getattr(figure, part)
    return plain


def _interval(figure: Interval) -> str:
    return f"{figure.estimate:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _difference(figure: Difference) -> str:
    text = f"{figure.estimate:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
    return text if figure.low <= 0 <= figure.high else f"**{text}**"

"""The common style of all figures, as PNG bytes: the same arrays give the same bytes.

The colors are those of Okabe and Ito, which color-blind people can distinguish. matplotlib is imported only when a
figure is drawn, and never through pyplot.
"""

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streetvision.eval.counts import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

BLUE, ORANGE, GREEN, GRAY, INK, PALE = "#0072b2", "#d55e00", "#009e73", "#80868f", "#22262b", "#dfe3e8"
STYLE: "dict[RcKeyType, Any]" = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}
WIDTH, HEIGHT = 6.0, 4.4
"""Inches. At 600 px on a screen the text is about 15 px high."""
DPI = 200
TITLE_CHARACTERS, EXTRA_CHARACTERS = 54, 8
DASHED = (0, (4, 4))


@contextmanager
def new_figure(title: str, height: float = HEIGHT) -> Iterator[tuple["Figure", io.BytesIO]]:
    """A figure to draw on, and a buffer that holds its PNG when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # The result must not depend on the user's matplotlibrc.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure, png = Figure(figsize=(WIDTH, height)), io.BytesIO()
        figure.suptitle(wrapped(title), x=0.02, ha="left", fontsize=13, fontweight="bold")
        yield figure, png
        # Without "Software", the bytes do not depend on the version of matplotlib in the metadata.
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})


def wrapped(title: str) -> str:
    """The title in lines of similar length, so that the last line is not a single word."""
    lines = -(-len(title) // TITLE_CHARACTERS)
    return textwrap.fill(title, min(TITLE_CHARACTERS, len(title) // lines + EXTRA_CHARACTERS))


def mark_threshold(axes: "Axes", x: float, y: float, label: str) -> None:
    """Draw the point that belongs to the threshold."""
    axes.plot([x], [y], "o", color=ORANGE, markersize=8, zorder=3, label=label)


def legend_above(axes: "Axes", columns: int = 3) -> None:
    """Draw the legend above the axes, where it covers no curve."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, columnspacing=1.2, handletextpad=0.4)


def draw_interval(axes: "Axes", x: FloatArray, low: FloatArray, high: FloatArray, label: str | None = None) -> None:
    """Fill the area between two curves."""
    axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label=label)

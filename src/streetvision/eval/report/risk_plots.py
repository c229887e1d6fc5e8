"""Pictures of decisions that may be handed over, and of aims that compete; made as those of `plots`."""

from collections.abc import Sequence

import numpy as np

from streetvision.eval.counts import FloatArray
from streetvision.eval.report.plots import BLUE, GREY, ORANGE, picture
from streetvision.eval.selective import RiskCoverage

RISK_TITLES = {"fnr": "positives missed", "fpr": "false alarms among negatives", "error": "wrong answers"}


def risk_coverage_curve(
    curve: RiskCoverage, *, kind: str, alpha: float, certified: tuple[float, float] | None
) -> bytes:
    """What handing over buys; `certified` is the share that the shipped rule answers and its risk, if there is one."""
    said = f"{certified[0]:.0%} is answered, with risk {certified[1]:.1%}" if certified else "nothing is handed over"
    with picture(f"Of the answered, {RISK_TITLES[kind]}: {said}") as (figure, png):
        axes = figure.subplots()
        axes.fill_between(curve.coverage, curve.low, curve.high, step="pre", color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(curve.coverage, curve.risk, color=BLUE, drawstyle="steps-pre", label="surest answered first")
        axes.axhline(alpha, color=GREY, linewidth=1.2, linestyle=(0, (4, 4)), label=f"allowed, {alpha:g}")
        if certified:
            axes.plot(*([value] for value in certified), "o", color=ORANGE, markersize=8, zorder=3, label="the rule")
        top = max(3 * alpha, 1.2 * float(curve.risk[curve.coverage >= 0.5].max(initial=0.0)))
        axes.set(xlabel="share answered", ylabel=RISK_TITLES[kind], xlim=(0, 1.02), ylim=(-0.02 * top, top))
        axes.legend(loc="upper left")
    return png.getvalue()


def front_picture(values: FloatArray, on_front: Sequence[bool], *, names: Sequence[str], chosen: int) -> bytes:
    """Every candidate by each pair of neighbouring objectives: `values` (K, D), lower is better in all D `names`."""
    front = np.asarray(on_front, dtype=bool)
    with picture(f"{front.sum()} of {len(values)} candidates are beaten by no other in every aim", 3.6) as drawn:
        figure, png = drawn
        panels = np.atleast_1d(figure.subplots(1, len(names) - 1))
        for k, axes in enumerate(panels):
            axes.scatter(*values[~front, k : k + 2].T, s=10, color=GREY, alpha=0.5, label="beaten")
            axes.scatter(*values[front, k : k + 2].T, s=18, color=BLUE, label="front")
            axes.scatter(*values[[chosen], k : k + 2].T, s=70, color=ORANGE, zorder=3, label="chosen")
            axes.set(xlabel=names[k], ylabel=names[k + 1])
            axes.locator_params(nbins=4)
        panels[0].legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3)
    return png.getvalue()

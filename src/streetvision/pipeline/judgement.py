"""From answers and labels to the figures, pictures and words of an evaluation."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streetvision.contracts.split_contracts import Row
from streetvision.data.decode import DecodeLimits, read_image
from streetvision.eval.bootstrap import Interval, bootstrap_intervals
from streetvision.eval.counts import Counts, confusion_counts
from streetvision.eval.plots import confusion_matrix, pr_curve, reliability_diagram, roc_curve
from streetvision.eval.reliability import ece_band
from streetvision.eval.report import Figure, Mistake, Report
from streetvision.eval.thresholds import decide
from streetvision.pipeline.settings import EvaluationConfig

WORST = 10
THUMBNAIL_PIXELS = 240


@dataclass(frozen=True)
class Judged:
    """What was asked, what was answered, and what is known of who answered."""

    rows: Sequence[Row]
    probabilities: NDArray[np.float64]
    """(N,) of class 1, one a row."""
    threshold: float
    class_names: tuple[str, str]
    title: str
    look: int
    """The how-many-th time these rows are looked at."""
    provenance: dict[str, str]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) 0 or 1."""
        return np.array([row.label for row in self.rows])

    @property
    def counts(self) -> Counts:
        """Decisions against labels."""
        return confusion_counts(self.labels, decide(self.probabilities, self.threshold))

    @property
    def groups(self) -> list[str] | None:
        """The group of each row; None when every row stands alone."""
        names = [row.group if row.group is not None else f"\0{i}" for i, row in enumerate(self.rows)]
        return names if len(set(names)) < len(names) else None


def make_report(judged: Judged, config: EvaluationConfig) -> Report:
    """Every figure with its interval, by group where groups hold several rows."""
    intervals = bootstrap_intervals(
        judged.labels,
        judged.probabilities,
        threshold=judged.threshold,
        groups=judged.groups,
        n_resamples=config.n_resamples,
        level=config.level,
        seed=config.seed,
    )
    counts, some = judged.counts, next(iter(intervals.values()))
    return Report(
        title=judged.title,
        class_names=judged.class_names,
        threshold=judged.threshold,
        counts={"tp": int(counts.tp), "tn": int(counts.tn), "fp": int(counts.fp), "fn": int(counts.fn)},
        metrics={name: _figure(interval) for name, interval in intervals.items()},
        level=config.level,
        ece_band=ece_band(judged.probabilities, seed=config.seed, level=config.level),
        units=some.units,
        grouped=judged.groups is not None,
        few_units=some.few_units,
        look=judged.look,
        provenance=judged.provenance,
        mistakes=_mistakes(judged),
    )


def draw_pictures(judged: Judged) -> dict[str, bytes]:
    """The plots of an evaluation as PNG, by the names of their artifacts."""
    labels, p, positive = judged.labels, judged.probabilities, judged.class_names[1]
    return {
        "roc_curve": roc_curve(labels, p, threshold=judged.threshold, positive=positive),
        "pr_curve": pr_curve(labels, p, threshold=judged.threshold, positive=positive),
        "confusion_matrix": confusion_matrix(judged.counts, class_names=judged.class_names),
        "reliability_diagram": reliability_diagram(labels, p, positive=positive),
    }


def draw_thumbnails(report: Report, root: Path, limits: DecodeLimits) -> dict[str, bytes]:
    """Small JPEGs of the report's mistakes, by the key that each names."""
    return {
        mistake["thumbnail"]: _thumbnail(root / mistake["name"], limits)
        for mistake in report.get("mistakes", [])
        if "thumbnail" in mistake
    }


def tell(report: Report) -> list[str]:
    """The evaluation in three lines, for a terminal."""
    counts, metrics = report["counts"], report["metrics"]
    positives, negatives = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    look = "first look" if report["look"] == 1 else f"look number {report['look']}"
    chance = f"(perfect would show up to {report['ece_band'][1]:.3f})"
    return [
        f"VAL_TEST, {positives + negatives} images set aside, {look}",
        f"  MCC    {_spoken(metrics['mcc'])}   ROC-AUC {_spoken(metrics['roc_auc'])}   "
        f"ECE {_spoken(metrics['ece'])} {chance}",
        f"  recall {_spoken(metrics['recall'])}   misses {counts['fn']} of {positives}, "
        f"false alarms {counts['fp']} of {negatives}",
    ]


def _figure(interval: Interval) -> Figure:
    ends = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (None if math.isnan(end) else end for end in ends)
    return {"estimate": estimate, "low": low, "high": high}


def _spoken(figure: Figure) -> str:
    if figure["estimate"] is None:
        return "undefined"
    return f"{figure['estimate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _mistakes(judged: Judged) -> list[Mistake]:
    """The wrong decisions whose probabilities lie farthest on the wrong side."""
    wrong = np.flatnonzero(decide(judged.probabilities, judged.threshold) != judged.labels)
    error = np.abs(judged.probabilities - judged.labels)
    worst = wrong[np.argsort(-error[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            name=judged.rows[i].path,
            label=judged.rows[i].label,
            probability=float(judged.probabilities[i]),
            thumbnail=f"mistake_{rank}",
        )
        for rank, i in enumerate(worst.tolist())
    ]


def _thumbnail(path: Path, limits: DecodeLimits) -> bytes:
    image = Image.fromarray(read_image(path, limits=limits).movedim(0, -1).contiguous().numpy())
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

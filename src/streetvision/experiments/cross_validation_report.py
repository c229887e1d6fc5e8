"""The result of a cross-validation: content of cross_validation.json, lines for a terminal, and the HTML page."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from streetvision.contracts.policies import Artifact, EstimateWithInterval
from streetvision.eval.figures import BLUE, new_figure
from streetvision.eval.intervals import level_text
from streetvision.eval.metrics import METRICS
from streetvision.eval.report.html import environment, inline_image

Count = Annotated[int, Field(ge=0)]
COVERS = (
    "The intervals are for the mean performance of these models on images like these, not for a model that is trained "
    "again on other images."
)


class CurvePoint(Artifact):
    """A point of the learning curve."""

    share: float
    """Share of the groups outside the outer folds."""
    images: Count
    """Mean number of images that a chain uses."""
    mcc: EstimateWithInterval


class SourceResult(Artifact):
    """The images of one source, predicted by a chain that used none of them."""

    name: str
    images: Count
    positives: Count
    mcc: float | None
    """None if it has images of one class only."""
    recall: float | None
    """None without images of class 1."""
    fpr: float | None
    """None without images of class 0."""


class UnseenSources(Artifact):
    """Every source, predicted by a chain that used none of its images."""

    images: Count
    """Images with a source."""
    metrics: dict[str, EstimateWithInterval]
    """Metric -> over all these images, with an interval from resampled sources."""
    difference: EstimateWithInterval
    """MCC minus that of the first repeat, on the same images."""
    few_sources: bool
    """Whether they are too few for reliable intervals."""
    sources: list[SourceResult]


class CrossValidation(Artifact):
    """Content of cross_validation.json."""

    data: str
    """Name of the data set."""
    class_names: tuple[str, str]
    images: Count
    positives: Count
    units: Count
    """Groups, or images without groups."""
    few_units: bool
    """Whether they are too few for reliable intervals."""
    grouped: bool
    """Whether the units are groups of images."""
    folds: Count
    repeats: Count
    level: float
    """Confidence level of the intervals."""
    metrics: dict[str, EstimateWithInterval]
    """Metric -> mean over the repeats."""
    by_repeat: list[dict[str, float | None]]
    """Metrics of each repeat."""
    thresholds: list[float]
    """Threshold of each chain."""
    protocols: dict[str, int]
    """Protocol -> number of chains."""
    curve: list[CurvePoint]
    """By share; the last one uses all groups."""
    gain: EstimateWithInterval | None
    """MCC with all groups minus MCC at the point before; None without a curve."""
    unseen: UnseenSources | None = None
    """Sources that were left out as a whole; None without cross_validation.leave_out."""

    def spread(self, name: str) -> str:
        """Return the lowest and the highest value of a metric over the repeats."""
        values = [repeat[name] for repeat in self.by_repeat]
        known = [value for value in values if value is not None]
        return f"{min(known):.3f} to {max(known):.3f}" if known else "not defined"

    def outlook(self) -> str:
        """Return whether more images would help, in a sentence."""
        if self.gain is None or self.gain.estimate is None or self.gain.low is None or len(self.curve) < 2:
            return "There is no learning curve."
        before, last = self.curve[-2], self.curve[-1]
        change = (
            f"From {before.images:,} to {last.images:,} images the MCC changes by {self.gain.estimate:+.3f} "
            f"[{self.gain.low:+.3f}, {self.gain.high:+.3f}]"
        )
        if self.gain.low > 0:
            return f"{change}: more images would help."
        return f"{change}: it is not certain that more images would help."


def text_of(figure: EstimateWithInterval, sign: str = "") -> str:
    """Return a figure with its interval; with the sign "+", a plus precedes numbers above 0."""
    if figure.estimate is None:
        return "undefined"
    return f"{figure.estimate:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def summary_lines(content: CrossValidation) -> Iterator[str]:
    """Yield the result as lines for a terminal."""
    metrics, kind = content.metrics, "groups" if content.grouped else "images"
    negative, positive = content.class_names
    yield (
        f"{content.images:,} images, {content.positives:,} {positive}, {content.units:,} {kind}; "
        f"{content.folds} folds, {content.repeats} repeats; 0 = {negative}, 1 = {positive}"
    )
    yield (
        f"  MCC    {text_of(metrics['mcc'])}   ROC-AUC {text_of(metrics['roc_auc'])}   ECE {text_of(metrics['ece'])}"
    )
    yield f"  recall {text_of(metrics['recall'])}   false alarm rate {text_of(metrics['fpr'])}"
    yield f"  MCC by repeat: {content.spread('mcc')}"
    yield f"  {content.outlook()}"
    if content.unseen is not None:
        unseen, few = content.unseen, ": too few for a reliable interval" if content.unseen.few_sources else ""
        yield (
            f"  unseen source: MCC {text_of(unseen.metrics['mcc'])}, {len(unseen.sources)} sources{few}; "
            f"difference {text_of(unseen.difference, sign='+')}"
        )
    yield f"  {COVERS}"


def render_cross_validation(content: CrossValidation) -> str:
    """Return the HTML page, which opens offline and runs no script."""
    return (
        environment("streetvision.experiments")
        .get_template("cross_validation.html.j2")
        .render(
            content=content,
            positive=content.class_names[1],
            metrics=[(METRICS[name].title, figure, content.spread(name)) for name, figure in content.metrics.items()],
            curve=inline_image(_curve_plot(content), alt="Learning curve") if len(content.curve) > 1 else None,
            outlook=content.outlook(),
            covers=COVERS,
            level=level_text(content.level),
        )
    )


def _curve_plot(content: CrossValidation) -> bytes:
    points = [point for point in content.curve if point.mcc.estimate is not None]
    with new_figure("MCC by the number of images") as (figure, png):
        axes = figure.subplots()
        images, estimates = [point.images for point in points], [point.mcc.estimate for point in points]
        below = [point.mcc.estimate - point.mcc.low for point in points]  # type: ignore[operator]
        above = [point.mcc.high - point.mcc.estimate for point in points]  # type: ignore[operator]
        axes.errorbar(images, estimates, yerr=[below, above], color=BLUE, marker="o", capsize=4)  # type: ignore[arg-type]
        axes.set_xlabel("images for training and calibration")
        axes.set_ylabel("MCC")
        axes.set_xlim(left=0)
    return png.getvalue()

"""What evaluation_report.json holds, and the sentences that follow from it; every value can be written as JSON."""

from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

RISK_NAMES = {"fnr": "miss rate", "fpr": "false alarm rate", "error": "error rate"}


class Figure(TypedDict):
    """A metric with its confidence interval; None where it is not defined."""

    estimate: float | None
    low: float | None
    high: float | None


class DifferenceFigure(Figure):
    """A metric less that of the first policy, on the same rows."""

    p_value: float | None
    """Two-sided, for "there is no difference"."""


class CountsRow(TypedDict):
    """Decisions against labels, in images."""

    tp: int
    tn: int
    fp: int
    fn: int


class PolicyRow(TypedDict):
    """One way to decide from the same model's logits."""

    name: str
    """argmax, threshold or scrc."""
    inference: str
    """How many looks at each image, and how they are fused: single_view."""
    threshold: float
    """Of this policy's own probabilities."""
    shipped: bool
    """Whether it is the one in the bundle."""
    counts: CountsRow
    metrics: dict[str, Figure]
    differences: NotRequired[dict[str, DifferenceFigure]]
    """Against the first policy of the table, which has none."""


class Selective(TypedDict):
    """What is answered only where its risk is certified, and handed to a person elsewhere."""

    risk: Literal["fnr", "fpr", "error"]
    """Misses among answered positives, false alarms among answered negatives, or errors among all that is answered."""
    promise: str
    """What was certified on VAL_CALIB, or why nothing was."""
    certified: bool
    answered: int
    """Images that got an answer."""
    counts: CountsRow
    """Of those."""
    found: Figure
    """The risk among those."""


class Slice(TypedDict):
    """The part of the test set that has one value of a column."""

    column: str
    value: str
    counts: CountsRow
    metrics: dict[str, Figure]
    """MCC, miss rate and false alarm rate."""
    units: int
    """Independent units in it."""
    few: bool
    """Whether they are too few to say anything."""


class Mistake(TypedDict):
    """An image that was decided wrongly."""

    name: str
    """File name, as a person knows it."""
    label: int
    """What it is: 0 or 1."""
    probability: float
    """Of class 1."""
    thumbnail: NotRequired[str]
    """Its key among the pictures."""


class EarlierTestAccesses(TypedDict):
    """The earlier accesses to VAL_TEST by one bundle."""

    bundle_sha256: str
    count: int
    last: str
    """Time of the last one, UTC."""


class Report(TypedDict):
    """Everything the page tells, and what evaluation_report.json holds."""

    title: str
    """What was judged, such as the name of the run."""
    mode: Literal["quick", "comprehensive"]
    data: str
    """VAL_TEST, or the data set that was given instead."""
    class_names: tuple[str, str] | list[str]
    threshold: float
    """An image is class 1 when its probability is at least this."""
    counts: CountsRow
    metrics: dict[str, Figure]
    """By the names of METRICS."""
    level: float
    """Of the intervals: 0.95."""
    ece_band: tuple[float, float] | list[float]
    """The ECE that perfect probabilities would show, as `ece_band` gives it."""
    units: int
    """Independent units that the intervals rest on."""
    rarer_units: int
    """Those of them that hold the rarer class."""
    grouped: bool
    """Whether the units are groups of images."""
    few_units: bool
    """Whether they are so few that no interval is to be trusted far."""
    test_access: int | None
    """Number of this access to VAL_TEST: 1 for the first; None if VAL_TEST was not accessed."""
    earlier_test_accesses: list[EarlierTestAccesses]
    """By bundle, the latest first."""
    notes: list[str]
    """What else a reader must know before believing the figures."""
    provenance: dict[str, str]
    """Fingerprint of the data, git SHA, digest of the model, versions: label -> value."""
    settings: dict[str, Any]
    """Phase -> the settings it ran with; empty where the run that made the bundle is not at hand."""
    policies: NotRequired[list[PolicyRow]]
    """The ways to decide, side by side."""
    selective: NotRequired[Selective]
    """Absent where the policy promises nothing by its kind."""
    slices: NotRequired[list[Slice]]
    mistakes: NotRequired[list[Mistake]]
    """The worst first."""
    many_views: NotRequired[bool]
    """Whether the pictures of mistakes frame the views that counted most."""


def verdict(report: Report) -> str:
    """The whole evaluation in one sentence."""
    counts, positive = report["counts"], report["class_names"][1]
    called, total = counts["tp"] + counts["fp"], images(counts)
    if called in (0, total):
        only = report["class_names"][int(called > 0)]
        return f"It calls all {total:,} images {only}, and so tells nothing apart."
    return (
        f"It finds {of(counts['tp'], counts['fn'])} images with {positive} "
        f"and raises a false alarm on {of(counts['fp'], counts['tn'])} others."
    )


def lead(report: Report) -> str:
    """What was judged and how well, in the sentences below the verdict."""
    mcc = report["metrics"]["mcc"]
    asked = "that took no part in training, tuning or calibration" if of_val_test(report) else f"of {report['data']}"
    return (
        f"{images(report['counts']):,} images {asked}. MCC {number(mcc['estimate'])}, {report['level']:.0%} interval "
        f"{span(mcc)}. Called {report['class_names'][1]} from a probability of {report['threshold']:.3g} on."
    )


def cautions(report: Report) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    if report["few_units"]:
        kind = "groups" if report["grouped"] else "images"
        rarer = f"{report['rarer_units']} of which hold the rarer class"
        yield f"The intervals rest on {report['units']} {kind}, {rarer}; with so few they may be too narrow."
    if report["test_access"] is not None and report["test_access"] > 1:
        yield (
            f"This is access {report['test_access']} to VAL_TEST. If something was changed after an earlier access, "
            "it may be fitted to VAL_TEST, and then these figures are too optimistic."
        )
    yield from report["notes"]


def access_history(report: Report) -> str:
    """How often VAL_TEST was accessed, and by which bundles."""
    if report["test_access"] is None:
        return "VAL_TEST was not accessed."
    if report["test_access"] == 1:
        return "VAL_TEST was accessed once, for this report."
    bundles = "; ".join(
        f"bundle {earlier['bundle_sha256'][:12]} {times(earlier['count'])}, last on {earlier['last']}"
        for earlier in report["earlier_test_accesses"]
    )
    return f"VAL_TEST was accessed {times(report['test_access'])}, this report included. Earlier accesses: {bundles}."


def selective_sentence(selective: Selective, total: int) -> str:
    """What answering only where it is certified comes to, in a sentence."""
    if not selective["certified"]:
        return f"No risk is certified: {selective['promise']}."
    handed = total - selective["answered"]
    return (
        f"Promised: {selective['promise']}. On these images {handed:,} of {total:,} are handed to a person, and "
        f"among the {selective['answered']:,} answered the {RISK_NAMES[selective['risk']]} is "
        f"{number(selective['found']['estimate'])} ({span(selective['found'])})."
    )


def of_val_test(report: Report) -> bool:
    """Whether the run's own VAL_TEST was judged, not a data set given instead."""
    return report["data"] == "VAL_TEST"


def images(counts: CountsRow) -> int:
    """How many images were decided."""
    return counts["tp"] + counts["tn"] + counts["fp"] + counts["fn"]


def number(value: float | None) -> str:
    """A figure to three places."""
    return "not defined" if value is None else f"{value:.3f}"


def span(figure: Figure) -> str:
    """Its interval in words, empty where there is none."""
    return "" if figure["low"] is None or figure["high"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"


def of(part: int, rest: int) -> str:
    """A count among the count of all."""
    return f"{part:,} of {part + rest:,}"


def times(count: int) -> str:
    """once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")

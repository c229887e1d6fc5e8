"""The content of evaluation_report.json, and the sentences that summarize it. Every value can be written as JSON."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

from streetvision.eval.intervals import FEW_UNITS, level_text

RISK_NAMES = {"fnr": "miss rate", "fpr": "false alarm rate", "error": "error rate"}


class Figure(TypedDict):
    """A metric with its confidence interval; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None


class DifferenceFigure(Figure):
    """The difference of a metric from that of the first policy, on the same rows."""

    p_value: float | None
    """Two-sided, of the hypothesis "no difference"."""


class CountsRow(TypedDict):
    """The confusion counts, in images."""

    tp: int
    tn: int
    fp: int
    fn: int


class PolicyRow(TypedDict):
    """A decision policy on the logits of the model."""

    name: str
    """argmax, threshold or scrc."""
    inference: str
    """single_view, or the mode of the fusion of views."""
    threshold: float
    """On the policy's own probabilities."""
    shipped: bool
    """Whether the bundle contains this policy."""
    counts: CountsRow
    metrics: dict[str, Figure]
    differences: NotRequired[dict[str, DifferenceFigure]]
    """From the first policy of the table, which has none."""


class Selective(TypedDict):
    """The predictions of a policy that abstains where its risk is not certified."""

    risk_kind: Literal["fnr", "fpr", "error"]
    """Misses among predicted positives, false alarms among predicted negatives, or errors among all predicted images.

    "Predicted" means without an abstention.
    """
    guarantee: str
    """The risk certified on VAL_CALIB, or the reason that none is certified."""
    certified: bool
    predicted: int
    """Images without an abstention."""
    counts: CountsRow
    """Confusion matrix of the predicted images."""
    risk: Figure
    """Among the predicted images."""


class Slice(TypedDict):
    """The part of the test set with one value of a column."""

    column: str
    value: str
    counts: CountsRow
    metrics: dict[str, Figure]
    """MCC, miss rate and false alarm rate."""
    units: int
    """Independent units in the slice."""
    few_units: bool
    """Whether they are too few for reliable figures."""


class Mistake(TypedDict):
    """An image with a wrong decision."""

    name: str
    """File name, relative to the data folder."""
    label: int
    """0 or 1."""
    probability: float
    """Probability of class 1."""
    thumbnail: NotRequired[str]
    """Key of its image."""


class EarlierTestAccesses(TypedDict):
    """The earlier accesses to VAL_TEST by one bundle."""

    bundle_sha256: str
    count: int
    last: str
    """Time of the last one, UTC."""


class OutOfFold(TypedDict):
    """The figures of the images that cross_fit trained and calibrated with."""

    images: int
    units: int
    """Independent units among them."""
    rarer_units: int
    """The units that contain the rarer class."""
    few_units: bool
    """Whether the units are too few for reliable intervals."""
    folds: int
    level: float
    """Confidence level of its intervals."""
    searched: bool
    """Whether a search in the run folder has compared settings by these figures."""
    metrics: dict[str, Figure]
    """By the names of METRICS. Model, calibrator and threshold of each image were fitted without its group."""


class Report(TypedDict):
    """The content of evaluation_report.json and of the page."""

    title: str
    """Name of the run."""
    mode: Literal["quick", "comprehensive"]
    data: str
    """VAL_TEST, or the name of another data set."""
    class_names: tuple[str, str] | list[str]
    threshold: float
    """Class 1 is predicted if the probability is at least this."""
    counts: CountsRow
    metrics: dict[str, Figure]
    """By the names of METRICS."""
    level: float
    """Confidence level of the intervals."""
    ece_band: tuple[float, float] | list[float]
    """The range of ECE to expect from perfectly calibrated probabilities."""
    units: int
    """Independent units that the intervals are based on."""
    rarer_units: int
    """The units that contain the rarer class."""
    grouped: bool
    """Whether the units are groups of images."""
    few_units: bool
    """Whether the units are too few for reliable intervals."""
    test_access: int | None
    """Number of this access to VAL_TEST: 1 for the first; None if VAL_TEST was not accessed."""
    earlier_test_accesses: list[EarlierTestAccesses]
    """By bundle, the latest first."""
    uncounted_test_images: NotRequired[int]
    """Images of VAL_TEST of a run whose access log is not available."""
    notes: list[str]
    """Further cautions."""
    provenance: dict[str, str]
    """Label -> value: fingerprint of the data, git SHA, digest of the model, versions."""
    settings: dict[str, Any]
    """Phase -> its settings; empty if the run that made the bundle is not available."""
    policies: NotRequired[list[PolicyRow]]
    """The decision policies compared."""
    selective: NotRequired[Selective]
    """Absent for a policy without risk control."""
    slices: NotRequired[list[Slice]]
    mistakes: NotRequired[list[Mistake]]
    """The worst first."""
    out_of_fold: NotRequired[OutOfFold]
    """Absent if the bundle was not made under cross_fit, or its run is not available."""
    many_views: NotRequired[bool]
    """Whether the images of mistakes show the decisive views in frames."""


def verdict(report: Report) -> str:
    """The result in one sentence, by the better evidence."""
    if not out_of_fold_is_better(report):
        name = f"On {report['data']}, the" if "out_of_fold" in report else "The"
        return f"{name} {_result(report)}"
    metrics, positive = report["out_of_fold"]["metrics"], report["class_names"][1]
    return (
        f'Out of fold, the model finds {percent(metrics["recall"])} of the images labeled "{positive}" '
        f"and raises a false alarm for {percent(metrics['fpr'])} of the others."
    )


def lead(report: Report) -> str:
    """The data, the MCC and the threshold, below the verdict."""
    negative, positive = report["class_names"]
    source: Report | OutOfFold = report
    if out_of_fold_is_better(report):
        source = out_of_fold = report["out_of_fold"]
        data = f"{out_of_fold['images']:,} images, each predicted by a model that was fitted without its group"
    else:
        total = f"{images(report['counts']):,}"
        held_out = f"{total} images that were not used for training, selection or calibration"
        data = held_out if of_val_test(report) else f"{total} images of {report['data']}"
    mcc = source["metrics"]["mcc"]
    with_level = f", {level_text(source['level'])} interval {interval(mcc)}" if interval(mcc) else ""
    return (
        f"{data}. MCC {number(mcc['estimate'])}{with_level}. "
        f'The prediction of the model is "{positive}" from a probability of {probability(report["threshold"])} on. '
        f'Label 0 is "{negative}", label 1 is "{positive}" (data.class_names).'
    )


def cautions(report: Report) -> Iterator[str]:
    """The limits of the figures that a reader must know."""
    if "out_of_fold" in report:
        if out_of_fold_is_better(report):
            mcc = report["metrics"]["mcc"]
            other = f"On {report['data']}, the {_result(report)} Its MCC there is"
        else:
            mcc, other = report["out_of_fold"]["metrics"]["mcc"], "Out of fold, the MCC is"
        yield f"{other} {with_interval(mcc)}. {better_evidence(report)}"
    sources: list[tuple[str, Report | OutOfFold]] = [(f"intervals of {report['data']}", report)]
    sources += [("out-of-fold intervals", report["out_of_fold"])] if "out_of_fold" in report else []
    for name, source in sources:
        of_one_class = source is report and 0 in _class_counts(report)
        if source["units"] < FEW_UNITS or (source["few_units"] and not of_one_class):
            rarer = "" if of_one_class else f", {source['rarer_units']} of them with the rarer class"
            yield f"The {name} are based on {source['units']} {_units(report)}{rarer}, and may be too narrow."
    if report["test_access"] is not None and report["test_access"] > 1:
        yield (
            f"This is access {report['test_access']} to VAL_TEST. If something was changed after an earlier access, "
            "it may be fitted to VAL_TEST, and then these figures are too optimistic."
        )
    yield from report["notes"]


def _result(report: Report) -> str:
    """The result on the evaluated data, as the rest of a sentence that starts with "The"."""
    counts, positive, total = report["counts"], report["class_names"][1], images(report["counts"])
    found = f'finds {fraction(counts["tp"], counts["fn"])} images labeled "{positive}"'
    false_alarms = f"raises a false alarm for {fraction(counts['fp'], counts['tn'])}"
    positives, negatives = _class_counts(report)
    if positives == 0:
        return f"model {false_alarms} images."
    if negatives == 0:
        return f"model {found}."
    predicted_positive = counts["tp"] + counts["fp"]
    if predicted_positive in (0, total):
        only = report["class_names"][int(predicted_positive > 0)]
        return f'model predicts "{only}" for all {total:,} images and does not separate the classes.'
    return f"model {found} and {false_alarms} others."


def _class_counts(report: Report) -> tuple[int, int]:
    """The numbers of images of class 1 and of class 0."""
    counts = report["counts"]
    return counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]


def out_of_fold_is_better(report: Report) -> bool:
    """Whether the out-of-fold figures describe the model better than those of the evaluated data.

    The better ones have the narrower interval of MCC. An interval of few units may be too narrow, and intervals of
    different levels cannot be compared, so then the better ones have more units with the rarer class. Figures by which
    a search has compared settings are not the better ones.
    """

    def width(figure: Figure) -> float:
        return float("inf") if figure["low"] is None or figure["high"] is None else figure["high"] - figure["low"]

    if "out_of_fold" not in report or report["out_of_fold"]["searched"]:
        return False
    if _units_decide(report):
        return report["out_of_fold"]["rarer_units"] > report["rarer_units"]
    return width(report["out_of_fold"]["metrics"]["mcc"]) < width(report["metrics"]["mcc"])


def _units(report: Report) -> str:
    of_folds = report.get("out_of_fold")
    grouped = report["grouped"] or (of_folds is not None and of_folds["units"] < of_folds["images"])
    return "groups" if grouped else "images"


def _units_decide(report: Report) -> bool:
    out_of_fold = report["out_of_fold"]
    few = report["few_units"] or out_of_fold["few_units"]
    different = report["rarer_units"] != out_of_fold["rarer_units"]
    return (few and different) or report["level"] != out_of_fold["level"]


def better_evidence(report: Report) -> str:
    """Which figures describe the model better, and why; the report must have out-of-fold figures."""
    folds = f"the out-of-fold figures, of {report['out_of_fold']['images']:,} images"
    test = f"{report['data']}, of {images(report['counts']):,} images"
    if report["out_of_fold"]["searched"]:
        reason = "the run folder has a search, which compared settings by their out-of-fold MCC"
        return f"The better evidence is {test}: {reason}, so the out-of-fold figures may be too optimistic."
    if _units_decide(report):
        units = {test: report["rarer_units"], folds: report["out_of_fold"]["rarer_units"]}
        better, other = sorted(units, key=units.__getitem__, reverse=True)
        count = f"{units[better]:,} {_units(report)} with the rarer class"
        return f"The better evidence is {better}: {count}, and {units[other]:,} for {other}."
    if out_of_fold_is_better(report):
        return f"The better evidence is {folds}: their interval of MCC is narrower than that of {test}."
    return f"The better evidence is {test}: its interval of MCC is not wider than that of {folds}."


def access_history(report: Report) -> str:
    """How often VAL_TEST was accessed, and by which bundles."""
    if uncounted := report.get("uncounted_test_images", 0):
        return f"{uncounted:,} images of VAL_TEST were used; this access is not counted."
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
    """The certified risk, and the abstentions and the risk on these images."""
    if not selective["certified"]:
        return f"No risk is certified: {selective['guarantee']}."
    abstained = total - selective["predicted"]
    return (
        f"Certified: {selective['guarantee']}. On these images the model abstains for {abstained:,} of {total:,}. "
        f"Among the other {selective['predicted']:,} the {RISK_NAMES[selective['risk_kind']]} is "
        f"{with_interval(selective['risk'])}."
    )


def of_val_test(report: Report) -> bool:
    """Whether the report is about the run's own VAL_TEST, not about another data set."""
    return report["data"] == "VAL_TEST"


def images(counts: CountsRow) -> int:
    """The number of images."""
    return counts["tp"] + counts["tn"] + counts["fp"] + counts["fn"]


def number(value: float | None) -> str:
    """A metric with three decimals."""
    return "not defined" if value is None else f"{value:.3f}"


def percent(figure: Figure) -> str:
    """A share in percent, without its interval."""
    return "an unknown share" if figure["estimate"] is None else f"{figure['estimate']:.0%}"


def interval(figure: Figure) -> str:
    """The confidence interval; empty if there is none."""
    return "" if figure["low"] is None or figure["high"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"


def with_interval(figure: Figure) -> str:
    """A metric with its confidence interval, if there is one."""
    return number(figure["estimate"]) + (f" ({interval(figure)})" if interval(figure) else "")


def probability(value: float) -> str:
    """A probability with three digits, and with more near 1."""
    digits = 3 if value < 0.9995 else 3 - math.floor(math.log10(max(1 - value, 1e-15)))
    return f"{value:.{digits}g}"


def fraction(part: int, rest: int) -> str:
    """A count out of its total."""
    return f"{part:,} of {part + rest:,}"


def times(count: int) -> str:
    """once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")

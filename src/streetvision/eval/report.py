"""The evaluation as one HTML page: it opens offline, asks nothing of any server and runs no script.

`Report` is what evaluation_report.json holds; every value in it can be written as JSON. Names of files and classes come
from elsewhere and are not trusted: every text goes through `html.escape`, and the page forbids itself all but its own
pictures and style.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import NotRequired, TypedDict

from streetvision.contracts.errors import DataError
from streetvision.eval.metrics import METRICS


class Figure(TypedDict):
    """A metric with its confidence interval; None where it is not defined."""

    estimate: float | None
    low: float | None
    high: float | None


class CountsRow(TypedDict):
    """Decisions against labels, in images."""

    tp: int
    tn: int
    fp: int
    fn: int


class Slice(TypedDict):
    """The part of the test set that came from one source."""

    name: str
    counts: CountsRow
    mcc: Figure


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


class Report(TypedDict):
    """Everything the page tells, and what evaluation_report.json holds."""

    title: str
    """What was judged, such as the name of the run."""
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
    grouped: bool
    """Whether the units are groups of images."""
    few_units: bool
    """Whether they are so few that no interval is to be trusted far."""
    look: int
    """The how-many-th time this test set is looked at: 1 for the first."""
    provenance: dict[str, str]
    """Fingerprint of the data, git SHA, digest of the model, versions: label -> value."""
    slices: NotRequired[list[Slice]]
    mistakes: NotRequired[list[Mistake]]
    """The worst first."""


QUESTIONS = {
    "confusion_matrix": "What is missed, and what is a false alarm?",
    "reliability_diagram": "Can its probabilities be believed?",
    "roc_curve": "How do misses trade against false alarms?",
    "pr_curve": "How far can an alarm be trusted?",
    "mcc_curve": "How much does the threshold matter?",
}
"""Key of a picture -> the question it answers, in the order of the page."""

MEANINGS = {
    "mcc": "agreement of answers and truth: 1 perfect, 0 no better than chance",
    "accuracy": "share of all images answered rightly",
    "precision": "share of alarms that are right",
    "recall": "share of {positive} that is found",
    "f1": "balance of precision and recall",
    "fnr": "share of {positive} that is missed",
    "fpr": "share of the others that raise an alarm",
    "roc_auc": "chance that {positive} gets a higher probability than another image",
    "pr_auc": "precision averaged over all shares found",
    "ece": "mean distance between probability and frequency; perfect ones would show {low:.3f} to {high:.3f} here",
    "brier": "mean squared error of the probabilities",
    "nll": "surprise at the truth, in nats: 0 perfect, 0.693 a coin",
}
SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""First bytes of a picture -> its media type."""


def render_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML, from the figures and the pictures (PNG, JPEG or WebP) by key.

    The pictures named in QUESTIONS are shown if they are given, thumbnails where a mistake names them.

    Raises:
        DataError: a picture is in another format, or a thumbnail is named and not given.
    """
    sections = [
        _opening(report),
        _metrics(report),
        _plots(pictures),
        _slices(report),
        _mistakes(report, pictures),
        _provenance(report),
    ]
    return _page(report["title"], "\n".join(section for section in sections if section))


def verdict(report: Report) -> str:
    """The whole evaluation in one sentence."""
    counts, positive = report["counts"], report["class_names"][1]
    called, total = counts["tp"] + counts["fp"], sum(counts[cell] for cell in ("tp", "tn", "fp", "fn"))
    if called in (0, total):
        only = report["class_names"][int(called > 0)]
        return f"It calls all {total:,} images {only}, and so tells nothing apart."
    return (
        f"It finds {_of(counts['tp'], counts['fn'])} images with {positive} "
        f"and raises a false alarm on {_of(counts['fp'], counts['tn'])} others."
    )


def _opening(report: Report) -> str:
    total = sum(report["counts"][cell] for cell in ("tp", "tn", "fp", "fn"))
    mcc = report["metrics"]["mcc"]
    lead = (
        f"{total:,} images that took no part in training, tuning or calibration. MCC {_number(mcc['estimate'])}, "
        f"{_level(report)} interval {_range(mcc)}. Called {report['class_names'][1]} from a probability of "
        f"{report['threshold']:.3g} on."
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _cautions(report))
    return (
        f'<header><h1>{escape(report["title"])}</h1><p class="verdict">{escape(verdict(report))}</p>'
        f'<p class="lead">{escape(lead)}</p>{notes}</header>'
    )


def _cautions(report: Report) -> Iterable[str]:
    """What a reader must know before believing the figures."""
    if report["few_units"]:
        kind = "groups" if report["grouped"] else "images"
        yield f"The intervals rest on {report['units']} {kind}; with so few they may be too narrow."
    if report["look"] > 1:
        yield (
            f"This test set has now been looked at {report['look']} times. Whatever was changed after an earlier look "
            "may have been fitted to it, and then these figures are too good."
        )


def _metrics(report: Report) -> str:
    rows = "".join(_metric_row(name, report) for name in METRICS if name in report["metrics"])
    units = f"{report['units']:,} groups, drawn whole" if report["grouped"] else f"{report['units']:,} images"
    return (
        "<section><h2>How good is it, and how sure is that?</h2>"
        '<div class="card scroll"><table><thead><tr><th>Metric</th><th class="number">Value</th>'
        f'<th class="number">{_level(report)} interval</th><th class="range"></th><th class="meaning">Meaning</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        f'<p class="after">Intervals: bootstrap over {units}.</p></section>'
    )


def _metric_row(name: str, report: Report) -> str:
    figure, (low, high) = report["metrics"][name], report["ece_band"]
    meaning = MEANINGS[name].format(positive=report["class_names"][1], low=low, high=high)
    return (
        f'<tr><th>{escape(METRICS[name].title)}</th><td class="number">{_number(figure["estimate"])}</td>'
        f'<td class="number">{_range(figure)}</td><td class="range">{_track(figure)}</td>'
        f'<td class="meaning">{escape(meaning)}</td></tr>'
    )


def _plots(pictures: Mapping[str, bytes]) -> str:
    shown = "".join(
        f'<figure class="card plot"><h3>{question}</h3>{_image(pictures[key], alt=question)}</figure>'
        for key, question in QUESTIONS.items()
        if key in pictures
    )
    return f'<section><h2>What the figures look like</h2><div class="plots">{shown}</div></section>' if shown else ""


def _slices(report: Report) -> str:
    rows = "".join(
        f"<tr><th>{escape(part['name'])}</th>"
        f'<td class="number">{_of(part["counts"]["fn"], part["counts"]["tp"])}</td>'
        f'<td class="number">{_of(part["counts"]["fp"], part["counts"]["tn"])}</td>'
        f'<td class="number">{_number(part["mcc"]["estimate"])}</td><td class="number">{_range(part["mcc"])}</td></tr>'
        for part in report.get("slices", [])
    )
    if not rows:
        return ""
    return (
        "<section><h2>Is it as good everywhere?</h2>"
        '<div class="card scroll"><table><thead><tr><th>Source</th><th class="number">Missed</th>'
        '<th class="number">False alarms</th><th class="number">MCC</th>'
        f'<th class="number">{_level(report)} interval</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _mistakes(report: Report, pictures: Mapping[str, bytes]) -> str:
    shown = "".join(_mistake(mistake, report, pictures) for mistake in report.get("mistakes", []))
    return f'<section><h2>Where does it fail worst?</h2><div class="gallery">{shown}</div></section>' if shown else ""


def _mistake(mistake: Mistake, report: Report, pictures: Mapping[str, bytes]) -> str:
    names, label = report["class_names"], mistake["label"]
    key = mistake.get("thumbnail")
    if key is not None and key not in pictures:
        raise DataError(f"the thumbnail {key!r} of {mistake['name']!r} is not among the pictures", None)
    image = "" if key is None else _image(pictures[key], alt=mistake["name"])
    text = f"Called {names[1 - label]}, is {names[label]}; probability of {names[1]} {mistake['probability']:.3f}"
    return (
        f'<figure class="card">{image}<figcaption>{escape(text)}'
        f'<span class="name">{escape(mistake["name"])}</span></figcaption></figure>'
    )


def _provenance(report: Report) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in report["provenance"].items())
    times = "once, for this page" if report["look"] == 1 else f"{report['look']} times, this page included"
    return (
        f'<section><h2>Where do these figures come from?</h2><div class="card"><dl>{rows}</dl></div>'
        f'<p class="after">The test set has been looked at {times}.</p></section>'
    )


def _page(title: str, body: str) -> str:
    style = files("streetvision.eval").joinpath("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _image(content: bytes, *, alt: str) -> str:
    """A picture inside the page."""
    media = next((media for start, media in SIGNATURES.items() if content.startswith(start)), None)
    if media is None:
        raise DataError(f"the picture for {alt!r} is neither PNG, JPEG nor WebP", "encode it as PNG")
    return f'<img alt="{escape(alt)}" src="data:{media};base64,{b64encode(content).decode()}">'


def _track(figure: Figure) -> str:
    """The interval drawn on a line from 0 to 1; nothing for metrics that leave it."""
    ends = (figure["low"], figure["estimate"], figure["high"])
    if any(end is None or not 0 <= end <= 1 for end in ends):
        return ""
    low, estimate, high = (100 * float(end) for end in ends if end is not None)
    return (
        f'<span class="track"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{estimate:.2f}%"></b></span>'
    )


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _range(figure: Figure) -> str:
    return "" if figure["low"] is None or figure["high"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"


def _of(part: int, rest: int) -> str:
    return f"{part:,} of {part + rest:,}"


def _level(report: Report) -> str:
    return f"{report['level']:.0%}"

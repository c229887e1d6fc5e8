"""The evaluation as one HTML page: it opens offline, asks nothing of any server and runs no script.

Names of files and classes come from elsewhere and are not trusted: every text goes through `html.escape`, and the page
forbids itself all but its own pictures and style.
"""

import json
from collections.abc import Mapping
from html import escape

from markupsafe import Markup

from streetvision.contracts.errors import DataError
from streetvision.eval.metrics import METRICS
from streetvision.eval.report.contents import (
    DifferenceFigure,
    Figure,
    Mistake,
    PolicyRow,
    Report,
    Slice,
    access_history,
    cautions,
    images,
    lead,
    number,
    of,
    selective_sentence,
    span,
    verdict,
)
from streetvision.eval.report.html import environment, inline_image

QUESTIONS = {
    "confusion_matrix": "What is missed, and what is a false alarm?",
    "reliability_diagram": "Can its probabilities be believed?",
    "roc_curve": "How do misses trade against false alarms?",
    "pr_curve": "How far can an alarm be trusted?",
    "threshold_curve": "What would other thresholds have given?",
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
POLICY_MEANINGS = {
    "argmax": "the class of the larger logit",
    "threshold": "the plain softmax, cut where MCC was highest on VAL_CALIB",
    "scrc": "the calibrated probability, cut where MCC was highest on VAL_CALIB",
}


def render_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML, from the figures and the pictures (PNG, JPEG or WebP) by key.

    The pictures named in QUESTIONS are shown if they are given, thumbnails where a mistake names them.

    Raises:
        DataError: a picture is in another format, or a thumbnail is named and not given.
    """
    sections = [
        _opening(report),
        _metrics(report),
        _policies(report),
        _selective(report),
        _plots(pictures),
        _slices(report),
        _mistakes(report, pictures),
        _provenance(report),
    ]
    return html_page(report["title"], "\n".join(section for section in sections if section))


def _opening(report: Report) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in cautions(report))
    return (
        f'<header><h1>{escape(report["title"])}</h1><p class="verdict">{escape(verdict(report))}</p>'
        f'<p class="lead">{escape(lead(report))}</p>{notes}</header>'
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
        f'<tr><th>{escape(METRICS[name].title)}</th><td class="number">{number(figure["estimate"])}</td>'
        f'<td class="number">{span(figure)}</td><td class="range">{_track(figure)}</td>'
        f'<td class="meaning">{escape(meaning)}</td></tr>'
    )


def _plots(pictures: Mapping[str, bytes]) -> str:
    shown = "".join(
        f'<figure class="card plot"><h3>{question}</h3>{inline_image(pictures[key], alt=question)}</figure>'
        for key, question in QUESTIONS.items()
        if key in pictures
    )
    return f'<section><h2>What the figures look like</h2><div class="plots">{shown}</div></section>' if shown else ""


def _policies(report: Report) -> str:
    policies = report.get("policies", [])
    if not policies:
        return ""
    rows = "".join(map(_policy_row, policies))
    return (
        "<section><h2>Would another way to decide be better?</h2>"
        '<div class="card scroll"><table><thead><tr><th>Policy</th><th class="number">MCC</th>'
        f'<th class="number">MCC less {escape(policies[0]["name"])}</th><th class="number">Missed</th>'
        '<th class="number">False alarms</th><th class="number">ECE</th><th class="number">Threshold</th>'
        "<th>Views</th></tr></thead>"
        f'<tbody>{rows}</tbody></table></div><p class="after">{escape(_policy_words(policies))} '
        f"Differences are paired, image by image, with {_level(report)} intervals.</p></section>"
    )


def _selective(report: Report) -> str:
    if "selective" not in report:
        return ""
    sentence = selective_sentence(report["selective"], images(report["counts"]))
    return f"<section><h2>When should a person decide?</h2><p>{escape(sentence)}</p></section>"


def _policy_row(row: PolicyRow) -> str:
    counts, metrics = row["counts"], row["metrics"]
    difference = row["differences"]["mcc"] if "differences" in row else None
    return (
        f"<tr><th>{escape(row['name'])}{' (shipped)' if row['shipped'] else ''}</th>"
        f'<td class="number">{_with_span(metrics["mcc"])}</td>'
        f'<td class="number">{"" if difference is None else _difference(difference)}</td>'
        f'<td class="number">{of(counts["fn"], counts["tp"])}</td>'
        f'<td class="number">{of(counts["fp"], counts["tn"])}</td>'
        f'<td class="number">{number(metrics["ece"]["estimate"])}</td>'
        f'<td class="number">{row["threshold"]:.3f}</td><td>{escape(row["inference"])}</td></tr>'
    )


def _policy_words(policies: list[PolicyRow]) -> str:
    """What each policy of the table does, in a sentence."""
    return " ".join(f"{name}: {POLICY_MEANINGS[name]}." for name in dict.fromkeys(row["name"] for row in policies))


def _with_span(figure: Figure) -> str:
    return f"{number(figure['estimate'])}<small>{span(figure)}</small>"


def _difference(figure: DifferenceFigure) -> str:
    if figure["estimate"] is None:
        return "not defined"
    return f"{figure['estimate']:+.3f}<small>{span(figure)}, p = {figure['p_value']:.2g}</small>"


def _slices(report: Report) -> str:
    slices = report.get("slices", [])
    if not slices:
        return ""
    columns = dict.fromkeys(part["column"] for part in slices)
    bodies = "".join(
        f'<tbody><tr class="column"><th colspan="6">{escape(column)}</th></tr>'
        + "".join(_slice_row(part) for part in slices if part["column"] == column)
        + "</tbody>"
        for column in columns
    )
    return (
        "<section><h2>Is it as good everywhere?</h2>"
        '<div class="card scroll"><table><thead><tr><th></th><th class="number">Missed</th>'
        '<th class="number">False alarms</th><th class="number">MCC</th>'
        f'<th class="number">{_level(report)} interval</th><th></th></tr></thead>{bodies}</table></div></section>'
    )


def _slice_row(part: Slice) -> str:
    counts, mcc = part["counts"], part["metrics"]["mcc"]
    return (
        f"<tr><th>{escape(part['value'])}</th>"
        f'<td class="number">{of(counts["fn"], counts["tp"])}</td>'
        f'<td class="number">{of(counts["fp"], counts["tn"])}</td>'
        f'<td class="number">{number(mcc["estimate"])}</td><td class="number">{span(mcc)}</td>'
        f'<td class="few">{"too few to say anything" if part["few"] else ""}</td></tr>'
    )


def _mistakes(report: Report, pictures: Mapping[str, bytes]) -> str:
    shown = "".join(_mistake(mistake, report, pictures) for mistake in report.get("mistakes", []))
    if not shown:
        return ""
    framed = f'<p class="after">{escape(_frames(report["class_names"]))}</p>' if report.get("many_views") else ""
    return f'<section><h2>Where does it fail worst?</h2><div class="gallery">{shown}</div>{framed}</section>'


def _frames(class_names: tuple[str, str] | list[str]) -> str:
    return (
        "Each frame is a view that the image was looked at in; up to three that counted most are shown, the thicker "
        f"the more. Orange saw {class_names[1]} there, blue {class_names[0]}. The view of the whole has no frame."
    )


def _mistake(mistake: Mistake, report: Report, pictures: Mapping[str, bytes]) -> str:
    names, label = report["class_names"], mistake["label"]
    key = mistake.get("thumbnail")
    if key is not None and key not in pictures:
        raise DataError(f"the thumbnail {key!r} of {mistake['name']!r} is not among the pictures", None)
    image = "" if key is None else inline_image(pictures[key], alt=mistake["name"])
    text = f"Called {names[1 - label]}, is {names[label]}; probability of {names[1]} {mistake['probability']:.3f}"
    return (
        f'<figure class="card">{image}<figcaption>{escape(text)}'
        f'<span class="name">{escape(mistake["name"])}</span></figcaption></figure>'
    )


def _provenance(report: Report) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in report["provenance"].items())
    return (
        f'<section><h2>Where do these figures come from?</h2><div class="card"><dl>{rows}</dl></div>'
        f'<p class="after">{escape(access_history(report))}</p>{_settings(report)}</section>'
    )


def _settings(report: Report) -> str:
    if not report["settings"]:
        return '<p class="after">The run that made the bundle is not at hand, nor are its settings.</p>'
    text = escape(json.dumps(report["settings"], indent=2, ensure_ascii=False))
    return f"<details><summary>The settings of every phase</summary><pre>{text}</pre></details>"


def html_page(title: str, body: str) -> str:
    """A page around `body`, which is HTML already."""
    frame = environment().from_string(
        '{% extends "base.html.j2" %}{% block title %}{{ title }}{% endblock %}{% block main %}{{ body }}{% endblock %}'
    )
    return frame.render(title=title, body=Markup(body))  # noqa: S704 - callers escape what they insert


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


def _level(report: Report) -> str:
    return f"{report['level']:.0%}"

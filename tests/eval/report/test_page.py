import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.eval.metrics import METRICS
from streetvision.eval.report.contents import selective_sentence
from streetvision.eval.report.page import MEANINGS, PLOT_TITLES, render_report

HOSTILE = '<script>alert("1")</script>&\'.jpg'


def picture(file_format="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), "#0072b2").save(content, file_format)
    return content.getvalue()


def sample(**changes):
    report = {
        "title": "outputs/demo",
        "mode": "comprehensive",
        "data": "VAL_TEST",
        "class_names": ["none", "roadwork"],
        "threshold": 0.437,
        "counts": {"tp": 75, "tn": 79, "fp": 3, "fn": 3},
        "metrics": {name: {"estimate": 0.92, "low": 0.861, "high": 0.963} for name in METRICS},
        "level": 0.95,
        "ece_band": [0.012, 0.046],
        "units": 160,
        "rarer_units": 78,
        "grouped": False,
        "few_units": False,
        "test_access": 1,
        "earlier_test_accesses": [],
        "notes": [],
        "provenance": {"data": "ab" * 32, "git": "1234abcd"},
        "settings": {"phase1": {"TrainingConfig": {"epochs": 40}}},
    }
    return report | changes


def a_slice(**changes):
    figure = {"estimate": 0.8, "low": 0.7, "high": 0.9}
    counts = {"tp": 20, "tn": 30, "fp": 2, "fn": 1}
    part = {"column": "source", "value": "ride-a", "counts": counts, "units": 53, "few_units": False}
    return part | {"metrics": dict.fromkeys(("mcc", "fnr", "fpr"), figure)} | changes


def a_policy(name, **changes):
    counts, metrics = sample()["counts"], sample()["metrics"]
    row = {"name": name, "inference": "single_view", "threshold": 0.5, "shipped": False}
    return row | {"counts": counts, "metrics": metrics} | changes


class Outline(HTMLParser):
    """Checks that tags close in order, and collects text, tags and addresses. White space is normalized."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.addresses = [], [], "", []
        self.feed(page)
        self.text = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_everything_in_the_report():
    text = Outline(render_report(sample(), dict.fromkeys(PLOT_TITLES, picture()))).text
    assert 'The model finds 75 of 78 images labeled "roadwork" and raises a false alarm for 3 of 82 others.' in text
    for metric in METRICS.values():
        assert metric.title in text
    assert "0.861 to 0.963" in text
    assert "a calibrated model: 0.012 to 0.046 on VAL_TEST" in text
    for title in PLOT_TITLES.values():
        assert title in text
    assert "ab" * 32 in text
    assert '"epochs": 40' in text
    assert "its settings are not known" in render_report(sample(settings={}), {})
    assert "accessed once" in text


def test_the_page_loads_nothing_and_is_small():
    page = render_report(sample(), dict.fromkeys(PLOT_TITLES, picture()))
    outline = Outline(page)
    assert outline.tags.count("img") == len(PLOT_TITLES)
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    "field", ["title", "class", "slice", "value", "note", "data", "mistake", "provenance", "settings"]
)
def test_untrusted_names_are_escaped(field):
    report = {
        "title": sample(title=HOSTILE),
        "class": sample(class_names=["none", HOSTILE]),
        "slice": sample(slices=[a_slice(column=HOSTILE)]),
        "value": sample(slices=[a_slice(value=HOSTILE)]),
        "note": sample(notes=[HOSTILE]),
        "data": sample(data=HOSTILE),
        "mistake": sample(mistakes=[{"name": HOSTILE, "label": 1, "probability": 0.1, "thumbnail": "worst"}]),
        "provenance": sample(provenance={HOSTILE: HOSTILE}),
        "settings": sample(settings={"phase1": HOSTILE}),
    }[field]
    page = render_report(report, {"worst": picture("JPEG")})
    assert "<script" not in page
    outline = Outline(page)
    assert HOSTILE in outline.text.replace('\\"', '"')
    assert "script" not in outline.tags


def test_slices_and_mistakes_are_shown_if_given():
    report = sample(
        slices=[a_slice(), a_slice(value="ride-b", few_units=True), a_slice(column="weather", value="fog")],
        mistakes=[
            {"name": "a.jpg", "label": 1, "probability": 0.02, "thumbnail": "m0"},
            {"name": "b.jpg", "label": 0, "probability": 0.98},
        ],
    )
    text = Outline(render_report(report, {"m0": picture("JPEG")})).text
    assert "source ride-a1 of 212 of 320.8000.700 to 0.900 ride-b1 of 212 of 32too few" in text
    assert text.count("too few for a conclusion") == 1
    assert "weather fog" in text
    assert 'Predicted "none", labeled "roadwork"; probability of "roadwork" 0.020' in text
    assert 'Predicted "roadwork", labeled "none"; probability of "roadwork" 0.980' in text
    assert "Each frame is a view" not in text
    framed = Outline(render_report(report | {"many_views": True}, {"m0": picture("JPEG")})).text
    assert 'Orange views favor "roadwork", blue views "none".' in framed
    bare = Outline(render_report(sample(many_views=True), {})).text
    for heading in ("Results by slice", "Worst mistakes"):
        assert heading in text
        assert heading not in bare


def test_undefined_metrics_are_marked():
    metrics = sample()["metrics"] | {"roc_auc": {"estimate": None, "low": None, "high": None}}
    assert "ROC-AUCnot defined" in Outline(render_report(sample(metrics=metrics), {})).text


def test_cautions_come_before_the_metrics():
    plain = render_report(sample(), {})
    assert 'class="note"' not in plain
    text = Outline(render_report(sample(test_access=3, few_units=True, grouped=True, units=7, rarer_units=2), {})).text
    assert "based on 7 groups, 2 of them with the rarer class" in text
    assert "access 3 to VAL_TEST" in text
    assert text.index("access 3 to VAL_TEST") < text.index("intervals: bootstrap")


def test_policies_are_compared_with_their_differences():
    difference = {"estimate": -0.0151, "low": -0.05, "high": 0.021, "p_value": 0.42}
    rows = [a_policy("argmax"), a_policy("scrc", shipped=True, differences=dict.fromkeys(METRICS, difference))]
    text = Outline(render_report(sample(policies=rows), {})).text
    assert "MCC minus argmax" in text
    assert "scrcshipped" in text
    assert "-0.015-0.050 to 0.021p = 0.42" in text
    assert text.count("the calibrated probability, with") == 1
    undefined = dict.fromkeys(difference)
    rows[1]["differences"]["mcc"] = undefined
    assert "not defined" in Outline(render_report(sample(policies=rows), {})).text
    fused = a_policy("argmax", inference="cvfm_trained", differences=dict.fromkeys(METRICS, difference))
    text = Outline(render_report(sample(policies=[rows[0], fused]), {})).text
    assert text.count("argmax, fused") == 1
    assert "policies compared" not in Outline(render_report(sample(), {})).text


def test_abstentions_are_reported_if_the_policy_controls_a_risk():
    risk = {"estimate": 0.032, "low": 0.0, "high": 0.09}
    selective = {"risk_kind": "fnr", "guarantee": f"FNR <= 0.05 {HOSTILE}", "certified": True, "predicted": 133}
    selective |= {"counts": sample()["counts"], "risk": risk}
    page = render_report(sample(selective=selective), {})
    assert "<script" not in page
    text = Outline(page).text
    assert f"Abstention {selective_sentence(selective, 160)}" in text
    assert "abstains for 27 of 160" in text
    assert "Abstention" not in Outline(render_report(sample(), {})).text


def test_invalid_images_and_missing_thumbnails_are_errors():
    with pytest.raises(DataError, match="PNG, JPEG or WebP"):
        render_report(sample(), {"roc_curve": b"GIF89a"})
    with pytest.raises(DataError, match=r"'m0' of 'a\.jpg'"):
        render_report(
            sample(mistakes=[{"name": "a.jpg", "label": 1, "probability": 0.1, "thumbnail": "m0"}]), {"m1": picture()}
        )


def test_every_metric_has_a_meaning_and_the_report_is_json():
    assert set(MEANINGS) == set(METRICS)
    assert render_report(json.loads(json.dumps(sample())), {}) == render_report(sample(), {})

import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from streetvision.contracts.errors import DataError
from streetvision.eval.metrics import METRICS
from streetvision.eval.report.contents import selective_sentence
from streetvision.eval.report.page import MEANINGS, QUESTIONS, render_report

EVIL = '<script>alert("1")</script>&\'.jpg'


def picture(form="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), "#0072b2").save(content, form)
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
    part = {"column": "source", "value": "ride-a", "counts": counts, "units": 53, "few": False}
    return part | {"metrics": dict.fromkeys(("mcc", "fnr", "fpr"), figure)} | changes


def a_policy(name, **changes):
    counts, metrics = sample()["counts"], sample()["metrics"]
    row = {"name": name, "inference": "single_view", "threshold": 0.5, "shipped": False}
    return row | {"counts": counts, "metrics": metrics} | changes


class Outline(HTMLParser):
    """Checks that tags close in order, and collects text, tags and addresses."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.addresses = [], [], "", []
        self.feed(page)
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


def test_the_page_tells_everything_in_the_report():
    text = Outline(render_report(sample(), dict.fromkeys(QUESTIONS, picture()))).text
    assert "It finds 75 of 78 images with roadwork and raises a false alarm on 3 of 82 others." in text
    for metric in METRICS.values():
        assert metric.title in text
    assert "0.861 to 0.963" in text
    assert "perfect ones would show 0.012 to 0.046 here" in text
    for question in QUESTIONS.values():
        assert question in text
    assert "ab" * 32 in text
    assert '"epochs": 40' in text
    assert "not at hand, nor are its settings" in render_report(sample(settings={}), {})
    assert "accessed once" in text


def test_the_page_asks_nothing_of_the_world_and_is_small():
    page = render_report(sample(), dict.fromkeys(QUESTIONS, picture()))
    outline = Outline(page)
    assert outline.tags.count("img") == len(QUESTIONS)
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    "place", ["title", "class", "slice", "value", "note", "data", "mistake", "provenance", "settings"]
)
def test_names_from_elsewhere_are_escaped(place):
    report = {
        "title": sample(title=EVIL),
        "class": sample(class_names=["none", EVIL]),
        "slice": sample(slices=[a_slice(column=EVIL)]),
        "value": sample(slices=[a_slice(value=EVIL)]),
        "note": sample(notes=[EVIL]),
        "data": sample(data=EVIL),
        "mistake": sample(mistakes=[{"name": EVIL, "label": 1, "probability": 0.1, "thumbnail": "worst"}]),
        "provenance": sample(provenance={EVIL: EVIL}),
        "settings": sample(settings={"phase1": EVIL}),
    }[place]
    page = render_report(report, {"worst": picture("JPEG")})
    assert "<script" not in page
    outline = Outline(page)
    assert EVIL in outline.text.replace('\\"', '"')
    assert "script" not in outline.tags


def test_slices_and_mistakes_are_shown_when_given_and_left_out_otherwise():
    report = sample(
        slices=[a_slice(), a_slice(value="ride-b", few=True), a_slice(column="weather", value="fog")],
        mistakes=[
            {"name": "a.jpg", "label": 1, "probability": 0.02, "thumbnail": "m0"},
            {"name": "b.jpg", "label": 0, "probability": 0.98},
        ],
    )
    text = Outline(render_report(report, {"m0": picture("JPEG")})).text
    assert "sourceride-a1 of 212 of 320.8000.700 to 0.900ride-b" in text
    assert text.count("too few to say anything") == 1
    assert "weatherfog" in text
    assert "Called none, is roadwork; probability of roadwork 0.020" in text
    assert "Called roadwork, is none; probability of roadwork 0.980" in text
    assert "Each frame is a view" not in text
    framed = Outline(render_report(report | {"many_views": True}, {"m0": picture("JPEG")})).text
    assert "Orange saw roadwork there, blue none." in framed
    bare = Outline(render_report(sample(many_views=True), {})).text
    for heading in ("Is it as good everywhere?", "Where does it fail worst?"):
        assert heading in text
        assert heading not in bare


def test_metrics_that_are_not_defined_are_said_to_be():
    metrics = sample()["metrics"] | {"roc_auc": {"estimate": None, "low": None, "high": None}}
    assert "ROC-AUCnot defined" in Outline(render_report(sample(metrics=metrics), {})).text


def test_cautions_come_first_when_there_is_reason():
    plain = render_report(sample(), {})
    assert 'class="note"' not in plain
    text = Outline(render_report(sample(test_access=3, few_units=True, grouped=True, units=7, rarer_units=2), {})).text
    assert "rest on 7 groups, 2 of which hold the rarer class" in text
    assert "access 3 to VAL_TEST" in text
    assert text.index("access 3 to VAL_TEST") < text.index("How good is it")


def test_policies_stand_side_by_side_with_their_differences():
    apart = {"estimate": -0.0151, "low": -0.05, "high": 0.021, "p_value": 0.42}
    rows = [a_policy("argmax"), a_policy("scrc", shipped=True, differences=dict.fromkeys(METRICS, apart))]
    text = Outline(render_report(sample(policies=rows), {})).text
    assert "MCC less argmax" in text
    assert "scrc (shipped)" in text
    assert "-0.015-0.050 to 0.021, p = 0.42" in text
    assert text.count("the calibrated probability, cut where") == 1
    undefined = dict.fromkeys(apart)
    rows[1]["differences"]["mcc"] = undefined
    assert "not defined" in Outline(render_report(sample(policies=rows), {})).text
    assert "another way to decide" not in Outline(render_report(sample(), {})).text


def test_what_is_handed_to_a_person_is_told_where_a_risk_was_promised():
    found = {"estimate": 0.032, "low": 0.0, "high": 0.09}
    promised = {"risk": "fnr", "promise": f"FNR <= 0.05 {EVIL}", "certified": True, "answered": 133}
    selective = promised | {"counts": sample()["counts"], "found": found}
    page = render_report(sample(selective=selective), {})
    assert "<script" not in page
    text = Outline(page).text
    assert f"When should a person decide?{selective_sentence(selective, 160)}" in text
    assert "27 of 160 are handed to a person" in text
    assert "When should a person decide?" not in Outline(render_report(sample(), {})).text


def test_pictures_that_are_none_and_thumbnails_that_are_missing_are_errors():
    with pytest.raises(DataError, match="PNG, JPEG or WebP"):
        render_report(sample(), {"roc_curve": b"GIF89a"})
    with pytest.raises(DataError, match=r"'m0' of 'a\.jpg'"):
        render_report(
            sample(mistakes=[{"name": "a.jpg", "label": 1, "probability": 0.1, "thumbnail": "m0"}]), {"m1": picture()}
        )


def test_every_metric_has_a_meaning_and_the_report_is_json():
    assert set(MEANINGS) == set(METRICS)
    assert render_report(json.loads(json.dumps(sample())), {}) == render_report(sample(), {})

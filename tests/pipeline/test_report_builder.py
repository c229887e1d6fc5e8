import json
from dataclasses import replace

import numpy as np
import pytest

from streetvision.contracts.policies import RiskControl
from streetvision.contracts.split_contracts import Row
from streetvision.eval.bootstrap import bootstrap_intervals, paired_difference
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import METRICS, mcc
from streetvision.eval.resampling import Resampling
from streetvision.pipeline import report_images
from streetvision.pipeline.report_builder import (
    DecisionRule,
    EvaluationInput,
    RiskGuarantee,
    make_report,
    summary_lines,
)
from streetvision.pipeline.settings import EvaluationConfig

CONFIG = EvaluationConfig(n_resamples=100)


def evaluation_input(n=120, *, grouped=False, **changes):
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.5).astype(int)
    p = np.clip(rng.normal(0.3 + 0.4 * labels, 0.2), 0, 1)
    rows = tuple(
        Row(
            f"{i}.jpg",
            int(label),
            "0" * 64,
            width=100 + i,
            height=100,
            brightness=i / n,
            group=f"track {i // 6}" if grouped else None,
            source="bus" if i % 3 else "car",
            columns={"weather": "fog" if i < 4 else "sun"},
        )
        for i, label in enumerate(labels)
    )
    rules = (DecisionRule("argmax", p**2, 0.5), DecisionRule("scrc", p, 0.5))
    fields = {
        "class_names": ("None", "Roadwork"),
        "title": "run",
        "data": "VAL_TEST",
        "provenance": {},
        "settings": {},
        "test_access": 1,
    }
    return EvaluationInput(rows, rules, **(fields | changes))


def test_the_metrics_are_of_the_shipped_policy():
    evaluation = evaluation_input()
    report = make_report(evaluation, CONFIG)
    expected = bootstrap_intervals(evaluation.predictions(evaluation.shipped), Resampling(n_resamples=100))
    for name, interval in expected.items():
        figure = report["metrics"][name]
        assert (figure["estimate"], figure["low"], figure["high"]) == (interval.estimate, interval.low, interval.high)
    assert report["policies"][-1]["metrics"] == report["metrics"]


def test_policies_differ_from_the_first_on_the_same_rows():
    evaluation = evaluation_input(grouped=True)
    first, shipped = make_report(evaluation, CONFIG)["policies"]
    assert "differences" not in first
    assert [first["shipped"], shipped["shipped"]] == [False, True]
    a, b = map(evaluation.predictions, evaluation.rules)
    expected = paired_difference(b, a, Resampling(n_resamples=100))
    for name in METRICS:
        difference = shipped["differences"][name]
        assert (difference["estimate"], difference["p_value"]) == (expected[name].estimate, expected[name].p_value)


def test_slices_cover_source_brightness_and_every_column():
    report = make_report(evaluation_input(), CONFIG)
    assert list(dict.fromkeys(part["column"] for part in report["slices"])) == ["source", "brightness", "weather"]
    for column in ("source", "brightness", "weather"):
        of_column = [part["counts"] for part in report["slices"] if part["column"] == column]
        for cell in ("tp", "tn", "fp", "fn"):
            assert sum(counts[cell] for counts in of_column) == report["counts"][cell]
    few = {part["value"]: part["few_units"] for part in report["slices"] if part["column"] == "weather"}
    assert few == {"sun": False, "fog": True}


def test_slices_of_groups_count_groups():
    report = make_report(evaluation_input(grouped=True), CONFIG)
    sun = next(part for part in report["slices"] if part["value"] == "sun")
    assert (sun["units"], report["units"]) == (20, 20)


def test_a_slice_of_one_class_has_no_mcc():
    evaluation = evaluation_input()
    rows = tuple(Row(**{**vars(row), "source": str(row.label)}) for row in evaluation.rows)
    parts = make_report(EvaluationInput(**{**vars(evaluation), "rows": rows}), CONFIG)["slices"]
    of_source = [part for part in parts if part["column"] == "source"]
    assert [part["metrics"]["mcc"]["estimate"] for part in of_source] == [None, None]
    assert all(part["few_units"] for part in of_source)


def test_mistakes_come_worst_first():
    evaluation = evaluation_input()
    report = make_report(evaluation, CONFIG)
    error = [abs(mistake["probability"] - mistake["label"]) for mistake in report["mistakes"]]
    assert len(error) == 10
    assert error == sorted(error, reverse=True)
    wrong = evaluation.shipped.decisions != evaluation.labels
    assert error[0] == np.abs(evaluation.shipped.probabilities - evaluation.labels)[wrong].max()


CONTROL = {"kind": "fnr", "alpha": 0.05, "delta": 0.1, "reason": "FNR <= 0.05", "n": 60, "units": "rows"}


def test_the_selective_risk_is_that_of_the_accepted_rows():
    control = RiskControl(**CONTROL, certified=True, lo=-1.0, hi=1.0, lo_probability=0.3, hi_probability=0.7)
    evaluation = evaluation_input()
    p = evaluation.shipped.probabilities
    predictions = np.where((p >= 0.3) & (p < 0.7), -1, p >= 0.7)
    selective = make_report(evaluation_input(guarantee=RiskGuarantee(control, predictions)), CONFIG)["selective"]
    accepted = predictions >= 0
    missed = (predictions[accepted] == 0) & (evaluation.labels[accepted] == 1)
    assert selective["predicted"] == accepted.sum() == sum(selective["counts"].values())
    assert selective["risk"]["estimate"] == pytest.approx(missed.sum() / (evaluation.labels[accepted] == 1).sum())
    assert selective["risk"]["low"] <= selective["risk"]["estimate"] <= selective["risk"]["high"]
    error_control = control.model_copy(update={"kind": "error"})
    selective = make_report(evaluation_input(guarantee=RiskGuarantee(error_control, predictions)), CONFIG)["selective"]
    error = selective["risk"]
    assert error["estimate"] == pytest.approx(np.mean((predictions[accepted] == 1) != evaluation.labels[accepted]))
    assert error["low"] <= error["estimate"] <= error["high"]


def test_the_groups_of_the_accepted_rows_are_listed_once(monkeypatch):
    control = RiskControl(**CONTROL, certified=True, lo=-1.0, hi=1.0, lo_probability=0.3, hi_probability=0.7)
    listed, groups = [], EvaluationInput.groups
    monkeypatch.setattr(EvaluationInput, "groups", property(lambda self: listed.append(1) or groups.fget(self)))
    guarantee = RiskGuarantee(control, np.ones(120, dtype=np.int64))
    assert make_report(evaluation_input(grouped=True, guarantee=guarantee), CONFIG)["selective"]["predicted"] == 120
    assert len(listed) < 20


def test_without_a_certificate_every_row_abstains():
    control = RiskControl(**CONTROL, certified=False)
    selective = make_report(evaluation_input(guarantee=RiskGuarantee(control, np.full(120, -1))), CONFIG)["selective"]
    assert (selective["predicted"], selective["risk"]["estimate"], selective["certified"]) == (0, None, False)
    assert "selective" not in make_report(evaluation_input(), CONFIG)


def test_quick_mode_omits_slow_parts():
    quick = make_report(evaluation_input(), CONFIG.model_copy(update={"mode": "quick"}))
    full = make_report(evaluation_input(), CONFIG)
    assert set(full) - set(quick) == {"policies", "slices", "mistakes", "many_views"}
    assert quick["metrics"] == full["metrics"]
    assert json.loads(json.dumps(full, allow_nan=False)) == json.loads(json.dumps(full))


@pytest.mark.parametrize(
    ("changes", "first_line"),
    [
        ({}, "VAL_TEST, 120 held-out images, first access"),
        ({"test_access": 3}, "VAL_TEST, 120 held-out images, access 3"),
        ({"test_access": None, "data": "holiday"}, "holiday, 120 images"),
    ],
)
def test_the_summary_names_data_and_access(changes, first_line):
    line = summary_lines(make_report(evaluation_input(**changes), CONFIG))[0]
    assert line == f"{first_line}; 0 = None, 1 = Roadwork (data.class_names)"


def test_the_threshold_curve_contains_the_exact_optimum(monkeypatch):
    bands = []
    monkeypatch.setattr(report_images, "threshold_curve", lambda band, threshold: bands.append(band))
    evaluation = evaluation_input()
    saturated = DecisionRule("scrc", 1 - (1 - evaluation.shipped.probabilities) / 1000, 0.9)
    report_images.draw_plots(replace(evaluation, rules=(saturated,)), CONFIG)
    p = saturated.probabilities
    best = max(float(mcc(confusion_counts(evaluation.labels, p >= cut))) for cut in p)
    assert bands[0].mcc.max() == pytest.approx(best)
    assert best > 0.5

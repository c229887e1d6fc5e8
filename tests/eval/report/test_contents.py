import pytest

from streetvision.eval.metrics import METRICS
from streetvision.eval.report.contents import access_history, cautions, lead, selective_sentence, verdict
from tests.eval.report.test_page import sample


@pytest.mark.parametrize(("counts", "only"), [((0, 82, 0, 78), "none"), ((78, 0, 82, 0), "roadwork")])
def test_the_verdict_on_a_model_that_predicts_one_class(counts, only):
    cells = dict(zip(("tp", "tn", "fp", "fn"), counts, strict=True))
    assert f'predicts "{only}" for all 160 images' in verdict(sample(counts=cells))


def test_the_lead_names_the_data():
    assert lead(sample()).startswith("160 images that were not used for training, selection or calibration. MCC 0.920,")
    assert lead(sample(data="holiday")).startswith("160 images of holiday. ")


def of_folds(*, low, high, rarer_units=60, few_units=False, **changes):
    figure = {"estimate": 0.75, "low": low, "high": high}
    units = {"units": 128, "rarer_units": rarer_units, "few_units": few_units}
    metrics = dict.fromkeys(METRICS, figure)
    fields = {"images": 292, "folds": 5, "level": 0.95, "searched": False, **units, "metrics": metrics}
    return sample(out_of_fold=fields | changes)


def test_the_verdict_and_the_lead_are_of_the_better_evidence_and_the_other_is_a_caution():
    narrow, wide = of_folds(low=0.74, high=0.76), of_folds(low=0.1, high=0.9)
    assert verdict(narrow).startswith('Out of fold, the model finds 75% of the images labeled "roadwork"')
    assert lead(narrow).startswith("292 images")
    assert next(cautions(narrow)).startswith("On VAL_TEST, the model finds 75 of 78 images")
    assert verdict(wide).startswith("On VAL_TEST, the model finds 75 of 78 images")
    assert lead(wide).startswith("160 images")
    assert next(cautions(wide)).startswith("Out of fold, the MCC is 0.750 (0.100 to 0.900).")


@pytest.mark.parametrize(("low", "high"), [(0.74, 0.76), (0.1, 0.9)])
@pytest.mark.parametrize(("rarer_units", "few_units"), [(60, False), (5, True)])
def test_an_interval_of_few_units_is_not_the_better_evidence(low, high, rarer_units, few_units):
    few_in_test = of_folds(low=low, high=high, rarer_units=rarer_units, few_units=few_units)
    few_in_test |= {"units": 12, "rarer_units": 1, "few_units": True}
    assert verdict(few_in_test).startswith("Out of fold")
    assert sum("may be too narrow" in caution for caution in cautions(few_in_test)) == 1 + few_units
    few_in_folds = of_folds(low=low, high=high, rarer_units=1, few_units=True)
    assert verdict(few_in_folds).startswith("On VAL_TEST")


def test_figures_that_a_search_has_compared_are_not_the_better_evidence():
    report = of_folds(low=0.74, high=0.76, searched=True)
    assert verdict(report).startswith("On VAL_TEST")
    assert lead(report).startswith("160 images")
    assert any("search" in caution for caution in cautions(report))


@pytest.mark.parametrize(("rarer_units", "better"), [(90, "Out of fold"), (78, "On VAL_TEST"), (60, "On VAL_TEST")])
def test_widths_of_intervals_of_other_levels_are_not_compared(rarer_units, better):
    for low, high in ((0.74, 0.76), (0.1, 0.9)):
        report = of_folds(low=low, high=high, rarer_units=rarer_units, level=0.9)
        assert verdict(report).startswith(better)
        of_source = "90% interval" if better == "Out of fold" else "95% interval"
        assert of_source in lead(report)
        named = next(text for text in cautions(report) if "better evidence" in text)
        assert ("is the out-of-fold figures" in named) == (better == "Out of fold")


@pytest.mark.parametrize(
    ("counts", "result"),
    [
        ((0, 500, 0, 0), "raises a false alarm for 0 of 500 images."),
        ((0, 498, 2, 0), "raises a false alarm for 2 of 500 images."),
        ((499, 0, 0, 1), 'finds 499 of 500 images labeled "roadwork".'),
    ],
)
def test_data_of_one_class_gives_the_rate_that_exists(counts, result):
    cells = dict(zip(("tp", "tn", "fp", "fn"), counts, strict=True))
    metrics = sample()["metrics"] | {"mcc": {"estimate": None, "low": None, "high": None}}
    few = {"units": 500, "rarer_units": 0, "few_units": True}
    report = sample(data="empty_roads", test_access=None, counts=cells, metrics=metrics, **few)
    assert verdict(report) == f"The model {result}"
    assert "interval" not in lead(report)
    assert list(cautions(report)) == []
    assert [text for text in cautions(report | {"units": 12}) if "based on 12 images, and" in text]


@pytest.mark.parametrize(("level", "text"), [(0.95, "95%"), (0.995, "99.5%"), (0.975, "97.5%"), (0.9, "90%")])
def test_a_confidence_level_is_not_rounded(level, text):
    assert f", {text} interval" in lead(sample(level=level))


@pytest.mark.parametrize(("threshold", "text"), [(0.4371, "0.437"), (0.9996, "0.9996"), (0.99998, "0.99998")])
def test_a_threshold_near_1_is_not_rounded_to_1(threshold, text):
    assert f"from a probability of {text} on" in lead(sample(threshold=threshold))


def test_the_first_access_needs_no_caution_and_later_ones_name_their_bundles():
    assert list(cautions(sample())) == []
    assert access_history(sample()) == "VAL_TEST was accessed once, for this report."
    earlier = [
        {"bundle_sha256": "ab" * 32, "count": 2, "last": "2026-01-02"},
        {"bundle_sha256": "cd" * 32, "count": 1, "last": "2026-01-01"},
    ]
    third = sample(test_access=4, earlier_test_accesses=earlier)
    assert "access 4 to VAL_TEST" in next(cautions(third))
    assert access_history(third) == (
        "VAL_TEST was accessed 4 times, this report included. Earlier accesses: bundle abababababab twice, last on "
        "2026-01-02; bundle cdcdcdcdcdcd once, last on 2026-01-01."
    )


def test_other_data_leaves_val_test_alone():
    other = sample(data="holiday", test_access=None, notes=["A note."])
    assert access_history(other) == "VAL_TEST was not accessed."
    assert list(cautions(other)) == ["A note."]
    assert "not accessed" not in access_history(other | {"uncounted_test_images": 7})


def test_the_guarantee_is_reported_with_the_risk_on_these_images():
    counts, risk = {"tp": 60, "tn": 70, "fp": 1, "fn": 2}, {"estimate": 0.032, "low": 0.0, "high": 0.09}
    selective = {
        "risk_kind": "fnr",
        "guarantee": "FNR <= 0.05",
        "certified": True,
        "predicted": 133,
        "counts": counts,
        "risk": risk,
    }
    assert selective_sentence(selective, 160) == (
        "Certified: FNR <= 0.05. On these images the model abstains for 27 of 160. Among the other 133 the miss rate "
        "is 0.032 (0.000 to 0.090)."
    )
    assert selective_sentence(selective | {"certified": False}, 160) == "No risk is certified: FNR <= 0.05."

import pytest

from streetvision.eval.report.contents import access_history, cautions, lead, selective_sentence, verdict
from tests.eval.report.test_page import sample


@pytest.mark.parametrize(("counts", "only"), [((0, 82, 0, 78), "none"), ((78, 0, 82, 0), "roadwork")])
def test_a_model_with_one_answer_is_named_in_the_verdict(counts, only):
    cells = dict(zip(("tp", "tn", "fp", "fn"), counts, strict=True))
    assert verdict(sample(counts=cells)) == f"It calls all 160 images {only}, and so tells nothing apart."


def test_the_lead_says_what_was_judged():
    assert lead(sample()).startswith("160 images that took no part in training, tuning or calibration. MCC 0.920, 95%")
    assert lead(sample(data="holiday")).startswith("160 images of holiday. ")


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
    other = sample(data="holiday", test_access=None, notes=["Mind the gap."])
    assert access_history(other) == "VAL_TEST was not accessed."
    assert list(cautions(other)) == ["Mind the gap."]


def test_the_promise_is_told_with_what_came_of_it():
    counts, found = {"tp": 60, "tn": 70, "fp": 1, "fn": 2}, {"estimate": 0.032, "low": 0.0, "high": 0.09}
    kept = {
        "risk": "fnr",
        "promise": "FNR <= 0.05",
        "certified": True,
        "answered": 133,
        "counts": counts,
        "found": found,
    }
    assert selective_sentence(kept, 160) == (
        "Promised: FNR <= 0.05. On these images 27 of 160 are handed to a person, and among the 133 answered the miss "
        "rate is 0.032 (0.000 to 0.090)."
    )
    assert selective_sentence(kept | {"certified": False}, 160) == "No risk is certified: FNR <= 0.05."

import csv
import io

import numpy as np
import pytest

from streetvision.calibration.config import PreferenceConfig
from streetvision.calibration.pareto import (
    OBJECTIVES,
    Candidate,
    FrontPoint,
    best_mcc_and_fnr,
    front_csv,
    mark_selected,
    pareto_front,
    select_preferred_point,
)

LABELS = np.array([0, 0, 1, 1])
GOOD = np.array([0.1, 0.2, 0.8, 0.9])
ONE_FOLD = np.zeros(4, dtype=np.int64)


def point(name, *objectives, **flags):
    return FrontPoint({name: 1.0}, *objectives, **flags)


def test_the_objectives_are_those_of_the_probabilities():
    (front_point,) = pareto_front([Candidate({"none": 1.0}, GOOD)], LABELS, ONE_FOLD)
    assert front_point.nll == pytest.approx(-np.log([0.9, 0.8, 0.8, 0.9]).mean())
    assert front_point.ece == pytest.approx(0.15)
    assert (front_point.mcc_loss, front_point.fnr, front_point.on_front) == (0.0, 0.0, True)


def test_folds_have_their_own_thresholds():
    """The order within each fold is right, and the calibrators of the folds differ in scale."""
    labels, folds = np.array([0, 1, 0, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    p = np.array([0.5, 0.9, 0.1, 0.4, 0.95, 0.6])
    assert best_mcc_and_fnr(labels, p, folds) == (1.0, 0.0)
    assert best_mcc_and_fnr(labels, p, np.zeros(6, dtype=np.int64))[0] < 0.5


def test_a_dominated_candidate_is_off_the_front_and_equal_ones_are_on_it():
    points = pareto_front(
        [Candidate({name: 1.0}, p) for name, p in (("a", GOOD), ("b", 1 - GOOD), ("c", GOOD))], LABELS, ONE_FOLD
    )
    assert [p.on_front for p in points] == [True, False, True]


def test_an_objective_that_is_constant_on_the_front_has_no_effect():
    front = [point("a", 0.5, 0.1, 0.2, 0.3, on_front=True), point("b", 0.4, 0.2, 0.2, 0.3, on_front=True)]
    assert select_preferred_point(front, PreferenceConfig(nll=2.0, mcc_loss=100.0)) is front[1]
    assert select_preferred_point(front, PreferenceConfig(ece=2.0, fnr=100.0)) is front[0]


def test_a_point_off_the_front_is_never_selected():
    dominated, other = point("a", 0.1, 0.1, 0.1, 0.1), point("b", 0.9, 0.9, 0.9, 0.9, on_front=True)
    assert select_preferred_point([dominated, other], PreferenceConfig()) is other


def test_the_csv_has_the_front_first_sorted_by_nll_in_full_precision():
    points = mark_selected(
        [
            point("none", 0.1 + 0.2, 0.1, 0.2, 0.3),
            point("platt", 0.6, 0.1, 0.2, 0.3, on_front=True),
            FrontPoint({"beta": 0.25, "isotonic": 0.75}, 1 / 3, 0.1, 0.2, 0.3, on_front=True),
        ],
        {"beta": 0.25, "isotonic": 0.75},
    )
    rows = list(csv.DictReader(io.StringIO(front_csv(points))))
    assert [row["weights"] for row in rows] == ["beta=0.250 isotonic=0.750", "platt=1.000", "none=1.000"]
    assert [float(row["nll"]) for row in rows] == [1 / 3, 0.6, 0.1 + 0.2]
    assert [row["on_front"] for row in rows] == ["true", "true", "false"]
    assert [row["selected"] for row in rows] == ["true", "false", "false"]
    assert set(OBJECTIVES) < set(rows[0])

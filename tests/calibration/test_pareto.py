import csv
import io

import numpy as np
import pytest

from streetvision.calibration.config import PreferenceConfig
from streetvision.calibration.pareto import (
    OBJECTIVES,
    FrontPoint,
    front_csv,
    mark_selected,
    pareto_front,
    select_preferred_point,
)

LABELS = np.array([0, 0, 1, 1])
GOOD = np.array([0.1, 0.2, 0.8, 0.9])


def point(name, *objectives, **flags):
    return FrontPoint({name: 1.0}, *objectives, **flags)


def test_the_objectives_are_those_of_the_probabilities():
    (found,) = pareto_front([({"none": 1.0}, LABELS, GOOD)])
    assert found.nll == pytest.approx(-np.log([0.9, 0.8, 0.8, 0.9]).mean())
    assert found.ece == pytest.approx(0.15)
    assert (found.mcc_loss, found.fnr, found.on_front) == (0.0, 0.0, True)


def test_what_is_worse_in_every_aim_is_off_the_front_and_equals_are_both_on_it():
    points = pareto_front([({name: 1.0}, LABELS, p) for name, p in (("a", GOOD), ("b", 1 - GOOD), ("c", GOOD))])
    assert [p.on_front for p in points] == [True, False, True]


def test_an_aim_in_which_the_front_does_not_differ_has_no_say():
    front = [point("a", 0.5, 0.1, 0.2, 0.3, on_front=True), point("b", 0.4, 0.2, 0.2, 0.3, on_front=True)]
    assert select_preferred_point(front, PreferenceConfig(nll=2.0, mcc_loss=100.0)) is front[1]
    assert select_preferred_point(front, PreferenceConfig(ece=2.0, fnr=100.0)) is front[0]


def test_what_is_off_the_front_is_never_preferred():
    beaten, kept = point("a", 0.1, 0.1, 0.1, 0.1), point("b", 0.9, 0.9, 0.9, 0.9, on_front=True)
    assert select_preferred_point([beaten, kept], PreferenceConfig()) is kept


def test_the_table_has_the_front_first_by_likelihood_and_every_figure_in_full():
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
    assert [row["chosen"] for row in rows] == ["true", "false", "false"]
    assert set(OBJECTIVES) < set(rows[0])
